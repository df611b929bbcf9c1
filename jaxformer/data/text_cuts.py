"""Where a text may be cut for a tokenizer: the ids of the parts, joined, are those of the whole.

A place is judged by the three characters around it, by rules that hold whatever else the text has.
No stage of a Hugging Face tokenizer may reach across it: neither the search for added tokens, nor
the normalizer, nor the pre-tokenizer. The pre-tokenizer must also cut there, unless the model has
no token that holds the characters of both sides. If a stage is unknown, nothing is cut.

A part is encoded after the character before it, whose ids are then removed, so that it does not get
the prefix that only the beginning of a text has.
"""

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxformer.data.long_text import with_next
from jaxformer.data.pattern import Pattern, UnknownPatternError
from jaxformer.errors import UserError
from jaxformer.memory import available_memory
from jaxformer.terminal import in_bytes

if TYPE_CHECKING:
    import tokenizers

Component = dict[str, Any]

# Measured: what the library needs per character of a text that it encodes whole.
BYTES_PER_CHARACTER = 130

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Each maps characters one by one, or the characters of a grapheme or a composition together.
BY_CHARACTER = {"BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt",
                "Precompiled", "StripAccents"}  # fmt: skip
# Each decides whether to cut by the two characters around a place.
BY_PAIRS = {"BertPreTokenizer", "CharDelimiterSplit", "Digits", "Punctuation", "Whitespace",
            "WhitespaceSplit"}  # fmt: skip
CUTTING = ("Isolated", "Removed")  # behaviours that cut at both ends of every match
UNKNOWN = frozenset("\u200d")  # a joiner, which is never plain
# Options with which a BPE model does not tokenize a word by its merges alone.
MORE_THAN_MERGES = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
BETWEEN_TOKENS = "\U0010ffff"


class Around(NamedTuple):
    """Characters that may stand around a place: the last but one before it, the last, the next."""

    earlier: frozenset[str]
    before: frozenset[str]
    after: frozenset[str]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(product(self.before, self.after))


class Piece(NamedTuple):
    """A part of a text from character `start` on, and the character before it, if any."""

    start: int
    context: str
    text: str


class NotHereError(Exception):
    """The text may not be cut there, as far as is known."""


class TextCuts:
    """The places where texts may be cut for the tokenizer of a `tokenizer.json`."""

    def __init__(self, name: str, tokenizer: "tokenizers.Tokenizer") -> None:
        definition = json.loads(tokenizer.to_str())
        self._name = name
        self._added = definition["added_tokens"]
        self._normalizer = definition["normalizer"]
        self._pre_tokenizer = definition["pre_tokenizer"]
        model = definition["model"]
        only_merges = model.get("type") == "BPE" and not any(map(model.get, MORE_THAN_MERGES))
        self._merged = tuple(model["vocab"]) if only_merges else ()
        self._normalize = _normalizer_of(self._normalizer)
        self._allowed = lru_cache(2**16)(self._decide)

    def pieces(self, blocks: Iterable[str]) -> Iterator[Piece]:
        """The text that the blocks make, cut at most once per block; none is empty but that of an
        empty text.

        Raises:
            UserError: a stretch without a place to cut needs more memory than there is.
        """
        start, context, held, before = 0, "", [""], ""
        for block, following in with_next(blocks):
            window = before + block + (following or "")[:1]
            # Where the block begins is a place that the block before has tried.
            place = self._last_place(window, len(before) + 1) if following else None
            if place is None:
                held.append(block)
                self._check_memory(sum(map(len, held)))
            else:
                place -= len(before)
                held.append(block[:place])
                piece = Piece(start, context, "".join(held))
                yield piece
                start, held = start + len(piece.text), [block[place:]]
                context = (before + block)[place + len(before) - 1]
            before = (before + block)[-2:]
        yield Piece(start, context, "".join(held))

    def _check_memory(self, characters: int) -> None:
        needed, there = characters * BYTES_PER_CHARACTER, available_memory()
        if needed > there:
            raise UserError(
                f"a text has {characters:,} or more characters in a row where the tokenizer "
                f"'{self._name}' allows no cut; tokenizing them at once takes {in_bytes(needed)}, "
                f"and {in_bytes(there)} is available. Split the text into several documents, or "
                f"choose another data.tokenizer"
            )

    def _last_place(self, text: str, first: int) -> int | None:
        """The last place, `first` or later, where text[:place] and text[place:] may be split."""
        for place in range(len(text) - 1, max(first, 2) - 1, -1):
            if self._allowed(*text[place - 2 : place + 1]):
                return place
        return None

    def _decide(self, earlier: str, before: str, after: str) -> bool:
        around = Around(frozenset(earlier), frozenset(before), frozenset(after))
        try:
            self._check_added(around, normalized=False)
            for component in _parts(self._normalizer, "normalizers"):
                around = _normalized(component, around)
            self._check_added(around, normalized=True)
            for component in _parts(self._pre_tokenizer, "pretokenizers"):
                cuts, around = _pre_tokenized(component, around)
                if cuts:
                    return True
        except (NotHereError, UnknownPatternError):
            return False
        return all(self._never_joins(*pair) for pair in around.pairs)

    def _check_added(self, around: Around, normalized: bool) -> None:
        """Check that added tokens neither touch the place nor, with the spaces that some strip
        around them, reach across it."""
        if any(character.isspace() for character in around.before):
            raise NotHereError
        contents = self._found_after_normalizing if normalized else self._found_first
        for before, after in around.pairs:
            for content in contents:
                if content[-1] == before or content[0] == after or before + after in content:
                    raise NotHereError

    @cached_property
    def _found_first(self) -> list[str]:
        tokens = [token for token in self._added if not token["normalized"]]
        return [token["content"] for token in tokens if token["content"]]

    @cached_property
    def _found_after_normalizing(self) -> list[str]:
        contents = [token["content"] for token in self._added if token["normalized"]]
        return [found for content in contents if (found := self._normalize(content))]

    def _never_joins(self, before: str, after: str) -> bool:
        """Whether merges of the whole text are merges of both sides: both characters are tokens,
        and no token holds the pair."""
        return {
            before,
            after,
        } <= self._merged_characters and before + after not in self._merged_tokens

    @cached_property
    def _merged_characters(self) -> frozenset[str]:
        single = {token for token in self._merged if len(token) == 1}
        return frozenset(single - {BETWEEN_TOKENS})

    @cached_property
    def _merged_tokens(self) -> str:
        return BETWEEN_TOKENS.join(self._merged)


def _parts(component: Component | None, key: str) -> list[Component]:
    """The components of a sequence, flattened; none where there is no component."""
    if component is None:
        return []
    if component["type"] == "Sequence":
        return [part for inner in component[key] for part in _parts(inner, key)]
    return [component]


def _normalized(component: Component, around: Around) -> Around:
    """What stands around the place after a normalizer that treats both sides as if alone."""
    kind = component["type"]
    if kind in BY_CHARACTER:
        if not all(_is_plain(character) for characters in around for character in characters):
            raise NotHereError
        if kind == "Precompiled" and not all(_ends_graphemes(c) for c in around.after):
            raise NotHereError
        normalize = _normalizer_of(component)
        earlier, before, after = ([normalize(c) for c in characters] for characters in around)
        if not all(earlier + before + after):
            raise NotHereError
        return Around(
            frozenset(image[-1] for image in earlier),
            frozenset(image[-1] for image in before),
            frozenset(image[0] for image in after),
        )
    if kind == "Replace":
        return _replaced(_pattern(component["pattern"]), component["content"], around)
    if kind == "Prepend":
        return around
    if kind == "Strip" and not any(character.isspace() for character in around.before):
        return around
    raise NotHereError


def _replaced(pattern: Pattern, content: str, around: Around) -> Around:
    _check_separated(pattern, around)

    def image(characters: frozenset[str], edge: str) -> frozenset[str]:
        touched = frozenset(filter(pattern.touches, characters))
        if touched and not content:
            raise NotHereError
        kept = frozenset(character for character in characters if not pattern.takes(character))
        return kept | frozenset(edge if touched else "")

    untouched = not any(map(pattern.touches, around.earlier | around.before))
    return Around(
        around.earlier if untouched else UNKNOWN,
        image(around.before, content[-1:]),
        image(around.after, content[:1]),
    )


def _pre_tokenized(component: Component, around: Around) -> tuple[bool, Around]:
    """Whether a pre-tokenizer that treats both sides as if alone cuts at the place, and what stands
    around it after."""
    kind = component["type"]
    if kind == "ByteLevel":
        if component.get("use_regex", True) and _cuts(_regex(GPT2), around):
            return True, around
        as_bytes = _normalizer_of({"type": "ByteLevel"})
        before = frozenset(as_bytes(character)[-1] for character in around.before)
        return False, Around(UNKNOWN, before, frozenset(as_bytes(c)[0] for c in around.after))
    if kind == "Split":
        pattern = _pattern(component["pattern"])
        if component["behavior"] in CUTTING:
            return _cuts(pattern, around), around
        if any(map(pattern.touches, around.before | around.after)):
            raise NotHereError
        return False, around
    if kind == "Metaspace" and "split" in component:
        space = component["replacement"]
        earlier, before, after = (
            frozenset(space if character == " " else character for character in characters)
            for characters in around
        )
        return component["split"] and after == {space}, Around(earlier, before, after)
    if kind in BY_PAIRS and component.get("behavior", "Isolated") in (*CUTTING, "Contiguous"):
        pre_tokenize = _pre_tokenizer_of(component)
        spans = [span for pair in around.pairs for _, span in pre_tokenize("".join(pair))]
        return (0, 2) not in spans, around
    raise NotHereError


def _cuts(pattern: Pattern, around: Around) -> bool:
    _check_separated(pattern, around)
    return all(map(pattern.takes, around.before)) or all(map(pattern.takes, around.after))


def _check_separated(pattern: Pattern, around: Around) -> None:
    if not all(pattern.separates(*pair) for pair in around.pairs):
        raise NotHereError


def _pattern(source: dict[str, str]) -> Pattern:
    return _regex(source["Regex"]) if "Regex" in source else _literal(source["String"])


@lru_cache
def _regex(source: str) -> Pattern:
    return Pattern(source)


@lru_cache
def _literal(text: str) -> Pattern:
    return Pattern(text, literal=True)


def _is_plain(character: str) -> bool:
    """Whether a character is normalised independently of those before it: no mark, joiner or Hangul
    letter, and in the plane whose compositions are settled."""
    parts = unicodedata.normalize("NFKD", character)
    return (
        character < "\U00010000"
        and all(unicodedata.category(c)[0] in "LNPSZ" for c in (character, parts[0]))
        and not any("\u1100" <= c <= "\u11ff" for c in (character, parts[0]))
        and not "\ua960" <= character <= "\ua97f"
        and not "\ud7b0" <= character <= "\ud7ff"
        and character != "\u0d4e"  # joins the letter after it
    ) or character in "\t\n\r"


def _ends_graphemes(character: str) -> bool:
    """Whether no grapheme continues with it. A line feed after a carriage return does continue one,
    but there the place is after a space, where nothing is cut."""
    return character.isascii() or unicodedata.category(character)[0] in "PZ"


def _normalizer_of(component: Component | None) -> Callable[[str], str]:
    if component is None:
        return str
    return _made("normalizer", component).normalize_str


def _pre_tokenizer_of(component: Component) -> Callable[[str], list]:
    return _made("pre_tokenizer", component).pre_tokenize_str


def _made(role: str, component: Component) -> Any:
    return _made_from(role, json.dumps(component))


@lru_cache
def _made_from(role: str, component: str) -> Any:
    import tokenizers

    definition = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    definition[role] = json.loads(component)
    return getattr(tokenizers.Tokenizer.from_str(json.dumps(definition)), role)
