"""The classes of rows, in place of a tokenizer: class i has the id i."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike

from jaxformer.data.long_text import Text
from jaxformer.errors import UserError, did_you_mean, shorten
from jaxformer.reading import read_text

FORMAT = 1


class ClassNames:
    """The names of classes, numbered from 0; no class is a beginning or an end of text.

    Args:
        name: as `data.tokenizer` has it.

    Raises:
        UserError: there are no names, or a name is there twice.
    """

    specials: Mapping[str, int] = MappingProxyType({})
    prefix_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    eos_id = -1  # no class

    def __init__(self, name: str, names: Sequence[str]) -> None:
        twice = [each for each, count in Counter(names).items() if count > 1]
        if not names or twice:
            fault = f"the class '{twice[0]}' is there twice" if twice else "there are no classes"
            raise UserError(f"data.tokenizer '{name}': {fault}; give every class a name of its own")
        self.name, self.names = name, tuple(names)
        self.vocab_size = len(self.names)
        self._ids = {each: number for number, each in enumerate(self.names)}

    @classmethod
    def numbered(cls, count: int) -> "ClassNames":
        """`classes:N`: labels from 0 to N − 1, whose names are these numbers."""
        return cls(f"classes:{count}", [str(number) for number in range(count)])

    @classmethod
    def from_file(cls, name: str, file: Path) -> "ClassNames":
        """The classes that `write` has written, or the user.

        Raises:
            UserError: the file is something else.
        """
        try:
            given = json.loads(read_text(file))
        except ValueError as error:
            raise _wrong_file(file, f"is not JSON ({error})") from None
        names = given.get("classes") if isinstance(given, dict) else None
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise _wrong_file(file, "has no list of names")
        return cls(name, names)

    def as_json(self) -> str:
        """The text of a classes.json file."""
        return json.dumps({"format": FORMAT, "classes": self.names}, indent=2, ensure_ascii=False)

    @property
    def fingerprint(self) -> str:
        text = json.dumps(["jaxformer classes", *self.names])
        return hashlib.sha256(text.encode()).hexdigest()

    def id_of(self, name: str) -> int | None:
        """The id of a class; None if there is no class of this name."""
        return self._ids.get(name)

    def decode(self, ids: ArrayLike, after: ArrayLike = ()) -> str:
        """The names of the classes, separated by commas."""
        return ", ".join(self.names[int(number)] for number in np.asarray(ids).reshape(-1))

    def decode_whole(self, ids: ArrayLike) -> str:
        return self.decode(ids)

    def encode(self, text: str) -> NoReturn:
        raise self._no_text()

    def encode_documents(self, texts: Sequence[str]) -> NoReturn:
        raise self._no_text()

    def encode_parts(self, texts: Sequence[Text]) -> NoReturn:
        raise self._no_text()

    def encode_places(self, texts: Sequence[str]) -> NoReturn:
        raise self._no_text()

    def count_bytes(self, ids: ArrayLike, after: ArrayLike = ()) -> NoReturn:
        raise self._no_text()

    def stream_decoder(self, after: ArrayLike = ()) -> NoReturn:
        raise self._no_text()

    def _no_text(self) -> UserError:
        return UserError(
            f"data.tokenizer '{self.name}' has {self.vocab_size} classes and reads no "
            f"text; give a run that was trained on text"
        )


def _wrong_file(file: Path, fault: str) -> UserError:
    return UserError(
        f'{file} {fault}; allowed: {{"format": {FORMAT}, "classes": ["NAME", "NAME", ...]}}'
    )


def unknown_class(source: str, name: str, known: Sequence[str]) -> UserError:
    """The error for a class of a source that is not among those of the run."""
    return UserError(
        f"data source '{source}' has the class '{name}', which is not among the {len(known)} "
        f"classes of the run: {shorten(', '.join(known))}.{did_you_mean(name, known)} Rename it, "
        f"or leave its rows out"
    )


def other_classes(source: str, names: Sequence[str], expected: Sequence[str]) -> UserError:
    """The error for a source whose classes have other names or another order than the run's."""
    place = next(
        (
            number
            for number, pair in enumerate(zip(names, expected, strict=False))
            if pair[0] != pair[1]
        ),
        min(len(names), len(expected)),
    )
    here, there = (
        f"'{each[place]}'" if place < len(each) else "none" for each in (names, expected)
    )
    return UserError(
        f"data source '{source}' has other classes than the run, or another order of them: class "
        f"{place} is {here} there and {there} here\n"
        f"  there: {shorten(', '.join(names))}\n  here:  {shorten(', '.join(expected))}\n"
        f"Give the source the same classes in the same order"
    )
