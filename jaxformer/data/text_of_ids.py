"""The text that new tokens add to the tokens before them, at once or one token at a time.

A token alone does not determine its text: SentencePiece-like decoders drop the space that a text
begins with, WordPiece joins its pieces, and a character may be several tokens. So new tokens are
decoded after the last ones before them, and the text of those is removed.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers

# Tokens of context. One decides whether a space is dropped; the others keep a character of several
# tokens, with which the context may begin, away from the tokens that follow.
CONTEXT = 16
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
HALF = "\ufffd"  # decoded from a character whose bytes are incomplete


class TextOfIds:
    """Decodes without special tokens; invalid UTF-8 becomes U+FFFD."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._hidden = np.array([id_ for id_, token in added.items() if token.special], np.int64)
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        self.bytes = frozenset(
            index for token, index in vocabulary.items() if BYTE_TOKEN.fullmatch(token)
        )

    def of(self, ids: np.ndarray, after: np.ndarray) -> str:
        """The text that `ids` add when they follow the tokens `after`.

        A character whose bytes are in both belongs to `ids`.
        """
        context = self.context(after)
        return added_text(self.decode(context), self.decode([*context, *ids.reshape(-1).tolist()]))

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def context(self, ids: np.ndarray) -> list[int]:
        """The last visible tokens of `ids`: enough of them to decide the text of what follows."""
        ids = ids.reshape(-1)
        visible = self.visible(ids[-4 * CONTEXT :])
        if len(visible) < CONTEXT or visible[0] in self.bytes:
            visible = self.visible(ids)
        start = max(0, len(visible) - CONTEXT)
        while start > 0 and visible[start] in self.bytes:  # a run of bytes is decoded as a whole
            start -= 1
        return visible[start:]

    def visible(self, ids: np.ndarray) -> list[int]:
        return ids[~np.isin(ids, self._hidden)].tolist()


def added_text(before: str, whole: str) -> str:
    """What `whole` has beyond `before`, which may end in a character that it completes."""
    if whole.startswith(before):
        return whole[len(before) :]
    pairs = zip(before, whole, strict=False)
    return whole[next((at for at, (one, other) in enumerate(pairs) if one != other), len(whole)) :]


class TextStream:
    """The text of tokens that come one at a time: what `push` and then `finish` return, joined, is
    the text of all of them. What a later token may still change is held back: half a character,
    and byte tokens until their run ends, since the library decodes a run as a whole."""

    def __init__(self, text: TextOfIds, after: np.ndarray) -> None:
        self._text = text
        self._ids = text.context(after)
        self._written = text.decode(self._ids)

    def push(self, token: int) -> str:
        if not self._text.visible(np.array([token])):
            return ""
        self._ids.append(token)
        if token in self._text.bytes:
            return ""
        whole = self._text.decode(self._ids)
        if whole.endswith(HALF):
            return ""
        piece = added_text(self._written, whole)
        self._ids = self._text.context(np.array(self._ids))
        self._written = self._text.decode(self._ids)
        return piece

    def finish(self) -> str:
        return added_text(self._written, self._text.decode(self._ids))
