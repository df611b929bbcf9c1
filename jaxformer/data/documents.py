"""What a row stands for: a text, a conversation, a prompt and its completion, or a pair of texts.

The loss covers every token of a text, only the assistant's answers in a conversation, only the
completion of a prompt, and only the second text of a pair. A token that holds any character of an
answer is in the loss.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from jaxformer.config import DataConfig, SourceConfig
from jaxformer.data.chat_template import ChatTemplate, Span, load_chat_template
from jaxformer.data.conversations import TOOLS, is_answered, read_messages, read_tools
from jaxformer.data.long_text import Text, utf8_bytes
from jaxformer.data.plain_tokenizers import byte_offsets
from jaxformer.data.rows import Column, LeftOut, Row
from jaxformer.data.sources import Source
from jaxformer.data.tokenizers import Tokenizer, source_ids
from jaxformer.data.units import Unit
from jaxformer.schema.base import Schema

PAIRS = "pairs"


class Document(NamedTuple):
    """A text to tokenise, and the characters [from, to) of the answers in it; `done` counts how
    much of the source or unit has been read.

    The text is None where the document is left out, for the reason `left_out`, and empty where it
    has nothing to train on.
    """

    text: Text | None
    done: int
    answers: tuple[Span, ...] = ()
    left_out: LeftOut | None = None


class Lengths(NamedTuple):
    """`data.min_chars` and `data.max_chars`: a document outside of them is left out."""

    min_chars: int | None = None
    max_chars: int | None = None


def read_documents(
    source: Source, form: "Format", lengths: Lengths, unit: Unit | None = None
) -> Iterator[Document]:
    """The documents of a source or of one of its units, also those that are left out, so that they
    can be counted.

    Raises:
        UserError: the source cannot be read, or a policy refuses a row.
    """
    least, most = lengths.min_chars or 0, lengths.max_chars or math.inf
    for document in form.documents(source.rows(form.columns, unit)):
        length = len(document.text) if document.text else least
        if length < least:
            yield Document(None, document.done, left_out="short")
        elif length > most:
            yield Document(None, document.done, left_out="long")
        else:
            yield document


class Encoded(NamedTuple):
    """The tokens of a document, which of them are in the loss (None: all but the first, which
    nothing predicts), and the UTF-8 bytes of the text of those.

    A document without a mask may come in parts; the last one `ends` it and counts its bytes.
    """

    ids: np.ndarray  # unsigned [length]
    loss_mask: np.ndarray | None  # bool [length]
    text_bytes: int
    ends: bool = True


class Instructions(Schema):
    """What decides the tokens and the loss of rows that are not texts."""

    format: str
    columns: tuple[str, ...]
    template: str | None = None  # its SHA-256


class Words(NamedTuple):
    """What documents are called: all of them, those with nothing to learn, and what is learnt; and
    what a source lacks where all are such as `are` says."""

    all: str
    empty: str
    learnt: str
    lacks: str
    are: str


def words_of(instructions: Instructions | None) -> Words:
    """The words for documents made with these instructions."""
    if instructions is None:
        return Words("documents", "empty ones", "text", "text", "documents are empty")
    if instructions.format == PAIRS:
        return Words("pairs", "with an empty side", "targets", "pair", "rows have an empty side")
    return Words("documents", "without an answer", "answers", "answer to learn", "rows have none")


class Format(Protocol):
    """How rows become documents, and documents tokens. `instructions` is None for texts."""

    @property
    def columns(self) -> tuple[Column, ...]: ...

    @property
    def instructions(self) -> Instructions | None: ...

    def documents(self, rows: Iterable[Row]) -> Iterator[Document]: ...

    def encode(self, texts: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Encoded]: ...


@dataclass(frozen=True)
class TextFormat:
    """A text per row, as [bos] tokens [eos]; without bos where the tokenizer adds none."""

    column: str
    instructions = None

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.column, str),)

    def documents(self, rows: Iterable[Row]) -> Iterator[Document]:
        for row in rows:
            text = row.values[0] if row.values else None
            yield Document(text, row.done, left_out=row.left_out)

    def encode(self, texts: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:
        written = [document.text or "" for document in texts]
        prefix = np.array(tokenizer.prefix_ids, np.uint32)
        eos = np.array([tokenizer.eos_id], np.uint32)
        sizes, begins, unpredicted = map(utf8_bytes, written), True, 0
        for ids, ends in tokenizer.encode_parts(written):
            if begins:
                unpredicted = 0 if len(prefix) else tokenizer.count_bytes(ids[:1])
            parts = [prefix] * begins + [ids] + [eos] * ends
            whole = np.concatenate(parts).astype(np.uint32)
            size = next(sizes) if ends else 0
            yield Encoded(whole, None, size - min(size, unpredicted), ends)
            begins = ends


@dataclass(frozen=True)
class CompletionFormat:
    """A prompt and its completion, as [bos] tokens [eos]; the completion and eos are in the loss,
    except for a first token, which nothing predicts.

    A row without a completion is left out.
    """

    prompt: str
    completion: str

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.prompt, str), Column(self.completion, str))

    @property
    def instructions(self) -> Instructions:
        return Instructions(format="completion", columns=(self.prompt, self.completion))

    def documents(self, rows: Iterable[Row]) -> Iterator[Document]:
        return _of_two_texts(rows, lambda prompt, completion: bool(completion))

    def encode(self, texts: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:
        prefix = len(tokenizer.prefix_ids)
        for ids, answer, size in _encode_answers(texts, tokenizer, begun=prefix > 0):
            mask = np.concatenate([np.zeros(prefix, bool), answer, [True]])
            yield Encoded(_between_ends(ids, tokenizer), mask, size)


@dataclass(frozen=True)
class MessagesFormat:
    """A conversation `[{role, content}, ...]`, rendered by the chat template with the tools of the
    column `tools` where the row has them; nothing is put before or after it. A conversation in
    which the assistant says nothing and calls nothing is left out.

    Raises:
        UserError: a row is not a conversation, or the template refuses it.
    """

    column: str
    template: ChatTemplate

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.column, list), Column(TOOLS, None))

    @property
    def instructions(self) -> Instructions:
        columns = (self.column, TOOLS)
        return Instructions(format="messages", columns=columns, template=self.template.hash)

    def documents(self, rows: Iterable[Row]) -> Iterator[Document]:
        for row in rows:
            if row.values is None:
                yield Document(None, row.done, left_out=row.left_out)
                continue
            messages = read_messages(row.values[0], f"{row.place}, column '{self.column}'")
            tools = read_tools(row.values[1], f"{row.place}, column '{TOOLS}'")
            text, answers = self.template.conversation(messages, row.place, tools)
            yield Document(text if is_answered(messages) else "", row.done, tuple(answers))

    def encode(self, texts: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:
        for ids, mask, size in _encode_answers(texts, tokenizer, begun=False):
            yield Encoded(ids, mask, size)


@dataclass(frozen=True)
class PairFormat:
    """Two texts, as [bos] tokens eos tokens eos, of which what follows the first eos is in the loss
    and a decoder's; what comes before is its encoder's, see `source_ids`.

    A pair of which a side is empty, or only spaces, is left out.
    """

    source: str
    target: str

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column(self.source, str, "data.pairs.source"),
            Column(self.target, str, "data.pairs.target"),
        )

    @property
    def instructions(self) -> Instructions:
        return Instructions(format=PAIRS, columns=(self.source, self.target))

    def documents(self, rows: Iterable[Row]) -> Iterator[Document]:
        return _of_two_texts(rows, lambda *sides: all(map(str.strip, sides)))

    def encode(self, texts: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:
        sides = [sides_of(document) for document in texts]
        sources = source_ids(tokenizer, [source for source, _ in sides])
        targets = tokenizer.encode_documents([target for _, target in sides])
        for source, target, (_, text) in zip(sources, targets, sides, strict=True):
            ids = np.concatenate([source, target, [tokenizer.eos_id]]).astype(np.uint32)
            yield Encoded(ids, np.arange(len(ids)) >= len(source), utf8_bytes(text))


def sides_of(pair: Document) -> tuple[str, str]:
    """The two texts of a pair."""
    text, [(begin, _)] = str(pair.text), pair.answers
    return text[:begin], text[begin:]


def _of_two_texts(rows: Iterable[Row], is_whole: Callable[[str, str], bool]) -> Iterator[Document]:
    """Documents of one text and an answer; empty ones where these are not whole."""
    for row in rows:
        if row.values is None:
            yield Document(None, row.done, left_out=row.left_out)
        else:
            first, second = row.values
            text = first + second if is_whole(first, second) else ""
            yield Document(text, row.done, ((len(first), len(text)),))


def format_of(source: SourceConfig, data: DataConfig, tokenizer: Tokenizer) -> Format:
    """The format of a source whose `format` and `column` are given, if it is not one of pairs.

    Raises:
        UserError: the format is messages, and the tokenizer has no chat template.
    """
    if data.pairs is not None:
        return PairFormat(data.pairs.source, data.pairs.target)
    match source.format, source.column:
        case "messages", str(column):
            return MessagesFormat(column, load_chat_template(tokenizer))
        case "completion", (prompt, completion):
            return CompletionFormat(prompt, completion)
        case _, str(column):
            return TextFormat(column)
    raise ValueError(f"format {source.format} with column {source.column}")


def _between_ends(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    prefix = np.array(tokenizer.prefix_ids, np.uint32)
    return np.concatenate([prefix, ids, [tokenizer.eos_id]]).astype(np.uint32)


def _encode_answers(
    texts: Sequence[Document], tokenizer: Tokenizer, *, begun: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Ids, which of them are in the loss because they hold a part of an answer, and the UTF-8 bytes
    of these. Whole texts are tokenised, as in inference, and answers are found by the places of
    tokens. Where nothing is put before a text (not `begun`), its first token is not in the loss."""
    specials = list(tokenizer.specials.values())
    written = [str(document.text or "") for document in texts]
    encodings = tokenizer.encode_places(written)
    for document, text, (ids, places) in zip(texts, written, encodings, strict=True):
        mask = np.zeros(len(ids), bool)
        for start, end in document.answers:
            mask |= (places[:, 0] < end) & (places[:, 1] > start)
        mask[:1] &= begun
        spoken = places[mask & ~np.isin(ids, specials)]
        yield ids, mask, _bytes_of(text, spoken)


def _bytes_of(text: str, places: np.ndarray) -> int:
    """UTF-8 bytes of the characters in `places` [tokens, 2], each counted once."""
    bounds = byte_offsets(text)[places]
    before = np.concatenate([[0], np.maximum.accumulate(bounds[:, 1])])[:-1]
    return int(np.maximum(bounds[:, 1] - np.maximum(bounds[:, 0], before), 0).sum())
