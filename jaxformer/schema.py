"""The base of every configuration class, and the error that is the user's to mend."""

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

LONGEST_SHOWN = 200


class UserError(Exception):
    """A mistake in what the user gave: the commands print its message and exit with code 2."""


class DoesNotFit(UserError):
    """A model that these devices cannot hold, or whose shape they cannot share: the same on every
    try, whatever else goes wrong."""


class RunFailed(Exception):
    """What went wrong for no mistake of the user's: the commands print its message and exit with
    code 1."""


class Schema(BaseModel):
    """Frozen, strict about types, no unknown keys, no NaN or infinity, no integer beyond what
    arrays are counted in, no NUL byte in text."""

    largest_integer: ClassVar[int] = 2**32 - 1

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any) -> Any:
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int) and abs(item) > cls.largest_integer:
                raise ValueError(
                    f"{shorten(str(item))} is too large; allowed: whole numbers up to "
                    f"{cls.largest_integer:,}"
                )
            if isinstance(item, str) and "\0" in item:
                raise ValueError(f"{shorten(repr(item))} has a NUL byte, which no name can have")
        return value


def shorten(text: str) -> str:
    """A text for a message: its beginning, where it is long."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ..."


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """' Did you mean NAME?' for the nearest spelling in `allowed`, or nothing."""
    nearest = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
