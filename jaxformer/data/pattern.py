"""What can be said of a regular expression's matches without knowing the text: which characters may
follow one another in a match, and which are always matched.

A pattern is read into the positions of its characters and the positions that may follow each
(Glushkov, 1961). Counts of repetitions are ignored, which only adds to what may follow.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

QUANTIFIER = re.compile(r"[?*+]|\{(\d*)(,?)(\d*)\}")
GROUP = re.compile(r"\?(?:(:)|(i:)|(=)|(!)|(>)|<[A-Za-z_]\w*>)")
# \p{…}, a code point, a class such as \s, or an escaped sign; others are anchors and references.
ESCAPE = re.compile(r"\\(?:[pP]\{\^?\w+\}|x\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|"
                    r"[sSdDwWhHrntfvae]|[^\w\s])")  # fmt: skip


class UnknownPatternError(ValueError):
    """A pattern that cannot be analysed."""


class Node(NamedTuple):
    """A part of a pattern. `first`, `last` and `alone` are sets of positions, as bits: where a
    match of the part can begin, where it can end, and which one can be all of it."""

    nullable: bool
    first: int = 0
    last: int = 0
    alone: int = 0
    looks: bool = False  # whether it may look ahead before it takes a character
    certain: bool = True  # whether, if nullable, it can match nothing anywhere


class Pattern:
    """A regular expression in Oniguruma's syntax, or a literal text.

    Raises:
        UnknownPatternError: it looks behind, has anchors or references, or matches empty text.
    """

    def __init__(self, source: str, *, literal: bool = False) -> None:
        self._atoms: list[Callable[[str], bool]] = []
        self._follow: list[int] = []
        self._looking = 0  # positions after which the pattern looks ahead
        if literal:
            root = Node(nullable=True)
            for character in source:
                root = self._then(root, self._atom(_is(character)))
        else:
            self._source, self._place = source, 0
            root = self._alternatives(ignore_case=False)
            if self._place < len(source):
                raise UnknownPatternError(source)
        if root.nullable:
            raise UnknownPatternError(source)
        self._alone = root.alone
        self._masks: dict[str, int] = {}

    def separates(self, before: str, after: str) -> bool:
        """Whether no match holds the character `before` directly followed by `after`, or depends on
        what follows `before` when it ends there."""
        mask, of_after = self._mask(before), self._mask(after)
        return not mask & self._looking and not any(
            self._follow[position] & of_after for position in _bits(mask)
        )

    def touches(self, character: str) -> bool:
        """Whether a match may hold the character."""
        return self._mask(character) != 0

    def takes(self, character: str) -> bool:
        """Whether the character is always in a match, because it is one by itself."""
        return self._mask(character) & self._alone != 0

    def _mask(self, character: str) -> int:
        if character not in self._masks:
            bits = (1 << place for place, holds in enumerate(self._atoms) if holds(character))
            self._masks[character] = sum(bits)
        return self._masks[character]

    def _alternatives(self, ignore_case: bool) -> Node:
        node = self._sequence(ignore_case)
        while self._take("|"):
            other = self._sequence(ignore_case)
            node = Node(
                node.nullable or other.nullable,
                node.first | other.first,
                node.last | other.last,
                node.alone | other.alone,
                node.looks or other.looks,
                node.certain and other.certain,
            )
        return node

    def _sequence(self, ignore_case: bool) -> Node:
        node = Node(nullable=True)
        while self._place < len(self._source) and self._source[self._place] not in "|)":
            node = self._then(node, self._repeated(ignore_case))
        return node

    def _then(self, one: Node, other: Node) -> Node:
        self._link(one.last, other)
        alone = other.alone if one.nullable and one.certain else 0
        return Node(
            one.nullable and other.nullable,
            one.first | (other.first if one.nullable else 0),
            other.last | (one.last if other.nullable else 0),
            alone | (one.alone if other.nullable and other.certain else 0),
            one.looks or (one.nullable and other.looks),
            one.certain and other.certain,
        )

    def _link(self, last: int, node: Node) -> None:
        for position in _bits(last):
            self._follow[position] |= node.first
        if node.looks:
            self._looking |= last

    def _repeated(self, ignore_case: bool) -> Node:
        node = self._one(ignore_case)
        while found := QUANTIFIER.match(self._source, self._place):
            self._place = found.end()
            sign = found[0]
            if sign[0] == "{" and not (found[1] or found[3]):
                raise UnknownPatternError(self._source)
            least = int(found[1] or 0) if sign[0] == "{" else int(sign == "+")
            once = (
                sign == "?" or found[3] in ("0", "1") or (sign[0] == "{" and sign in ("{0}", "{1}"))
            )
            if not once:
                self._link(node.last, node)
            possessive = sign[0] != "{" and self._take("+")
            if not possessive:
                self._take("?")  # a lazy one matches the same characters
            node = node._replace(
                nullable=node.nullable or least == 0,
                alone=node.alone if least <= 1 else 0,
                certain=node.certain and not possessive,
            )
        return node

    def _one(self, ignore_case: bool) -> Node:
        source, start = self._source, self._place
        match source[start]:
            case "(":
                return self._group(ignore_case)
            case "[":
                return self._atom(self._matches(_class_at(source, start), ignore_case))
            case "\\":
                escape = ESCAPE.match(source, start)
                if not escape:
                    raise UnknownPatternError(source)
                return self._atom(self._matches(escape[0], ignore_case))
            case ".":
                return self._atom(self._matches(".", ignore_case))
            case "^" | "$" | "*" | "+" | "?" | "{":
                raise UnknownPatternError(source)
            case character:
                self._place += 1
                return self._atom(_folds_to(character) if ignore_case else _is(character))

    def _group(self, ignore_case: bool) -> Node:
        self._place += 1
        ahead = atomic = False
        if self._source.startswith("?", self._place):
            kind = GROUP.match(self._source, self._place)
            if not kind:
                raise UnknownPatternError(self._source)
            self._place = kind.end()
            ignore_case = ignore_case or kind[2] is not None
            ahead, atomic = kind[3] is not None or kind[4] is not None, kind[5] is not None
        node = self._alternatives(ignore_case)
        if not self._take(")"):
            raise UnknownPatternError(self._source)
        if ahead:
            return Node(nullable=True, looks=True, certain=False)
        return node._replace(certain=False, alone=0) if atomic else node

    def _matches(self, source: str, ignore_case: bool) -> Callable[[str], bool]:
        self._place += len(source)
        return _library_matches(f"(?i:{source})" if ignore_case else source)

    def _atom(self, holds: Callable[[str], bool]) -> Node:
        bit = 1 << len(self._atoms)
        self._atoms.append(holds)
        self._follow.append(0)
        return Node(False, bit, bit, bit)

    def _take(self, sign: str) -> bool:
        found = self._source.startswith(sign, self._place)
        self._place += found
        return found


def _class_at(source: str, start: int) -> str:
    """`[...]`, with the classes in it."""
    depth, place = 0, start
    while place < len(source):
        if source[place] == "\\":
            place += 1
        elif source[place] == "[":
            depth += 1
            if source.startswith(("[]", "[^]"), place):
                break
        elif source[place] == "]":
            depth -= 1
            if depth == 0:
                return source[start : place + 1]
        place += 1
    raise UnknownPatternError(source)


def _is(character: str) -> Callable[[str], bool]:
    return lambda other: other == character


def _folds_to(character: str) -> Callable[[str], bool]:
    """Equal with case ignored; also a character that this turns into several, as ß into ss."""
    folded = character.casefold()
    return lambda other: any(part in other.casefold() for part in folded)


@cache
def _library_matches(source: str) -> Callable[[str], bool]:
    """Whether the tokenizers' own engine finds the class in a character."""
    from tokenizers import Regex, normalizers

    gone = normalizers.Replace(Regex(source), "")
    return lambda character: gone.normalize_str(character) == ""


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
