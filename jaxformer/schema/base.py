"""The base of every configuration class."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

from jaxformer.errors import shorten


class Schema(BaseModel):
    """A section of a configuration: frozen, strict about types, without unknown keys.

    It refuses NaN, infinity, integers above `largest_integer`, and NUL bytes in text.
    """

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
