"""The base of every configuration class."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from jaxformer.errors import shorten

LARGEST_SIZE = 2**63 - 1


class Schema(BaseModel):
    """A section of a configuration: frozen, strict about types, without unknown keys.

    It refuses NaN, infinity, integers above `largest_integer` except in fields that count bytes of
    a disk, and NUL bytes in text.
    """

    largest_integer: ClassVar[int] = 2**32 - 1
    byte_counts: ClassVar[frozenset[str]] = frozenset()  # the fields that count bytes of a disk

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any, field: ValidationInfo) -> Any:
        largest = LARGEST_SIZE if field.field_name in cls.byte_counts else cls.largest_integer
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int) and abs(item) > largest:
                raise ValueError(
                    f"{shorten(str(item))} is too large; allowed: whole numbers up to {largest:,}"
                )
            if isinstance(item, str) and "\0" in item:
                raise ValueError(f"{shorten(repr(item))} has a NUL byte, which no name can have")
        return value
