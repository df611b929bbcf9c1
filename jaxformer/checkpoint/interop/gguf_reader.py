"""A GGUF file's header, with a check that all it describes lies within the file."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGUFReader
from numpy.typing import DTypeLike, NDArray

from jaxformer.errors import UserError
from jaxformer.terminal import say

KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
}


class CheckedReader(GGUFReader):
    """The package's reader, which returns shorter arrays if a file ends early; here it raises."""

    def _get(
        self,
        offset: int,
        dtype: DTypeLike,
        count: int = 1,
        override_order: Literal["I", "S", "<"] | None = None,
    ) -> NDArray[Any]:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > self.data.size:
            raise ValueError(f"it ends at byte {self.data.size}, its header reaches byte {end}")
        return super()._get(offset, dtype, count, override_order)


class Metadata:
    """A GGUF file's keys and values."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self._values = values

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of `key`, or `default`.

        Raises:
            UserError: the value is of another kind.
        """
        value = self._values.get(key)
        if value is None:
            return default
        if type(value) is not kind:
            raise UserError(f"{self.path}: '{key}' is {value!r}; it must be {KINDS[kind]}")
        return value

    def require(self, key: str, kind: type) -> Any:
        """The value of `key`.

        Raises:
            UserError: it is missing, or of another kind.
        """
        if key not in self._values:
            raise UserError(f"{self.path}: its metadata lacks '{key}'; convert the model again")
        return self.get(key, kind)

    def under(self, prefix: str) -> set[str]:
        """The keys that begin with `prefix`."""
        return {key for key in self._values if key.startswith(prefix)}


def open_gguf(path: Path) -> tuple[CheckedReader, Metadata]:
    """The file's tensors, none of which is read yet, and its metadata.

    Raises:
        UserError: missing, truncated, no GGUF, of a foreign byte order, or a part of several.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    say(f"reading the header of {path}")
    try:
        reader = CheckedReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is not a whole GGUF file: {error}; fetch it again") from None
    if reader.byte_order != "I":
        raise UserError(f"{path} is big-endian; convert it with gguf-convert-endian")
    metadata = Metadata(path, values)
    parts = metadata.get("split.count", int, 1)
    if parts > 1:
        raise UserError(
            f"{path} is one of {parts} parts; join them with llama-gguf-split --merge, and import "
            f"the result"
        )
    return reader, metadata
