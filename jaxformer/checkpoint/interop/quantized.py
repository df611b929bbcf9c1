"""Quantised weights, read as the float32 numbers that they stand for.

mxfp4: 32 numbers of four bits share a power of two (OCP Microscaling Formats, version 1.0, 2023;
gpt-oss has its experts so). fp8: blocks of eight-bit numbers share a float32 factor (DeepSeek-V3,
2024, arXiv:2412.19437, section 3.3).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxformer.checkpoint.interop.hub_config import shown
from jaxformer.checkpoint.interop.source import Source, TensorInfo
from jaxformer.errors import UserError

KEY = "quantization_config"
SUPPORTED = ("fp8", "mxfp4")
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)  # then the same, negative
BITS_AND_SIGN = np.concatenate([FP4, -FP4])
HALF_BLOCK = 16  # bytes, of two numbers each


class Parts(NamedTuple):
    """The two tensors that one is made of."""

    numbers: str
    scales: str


class Format(Protocol):
    """How a tensor is stored as numbers and scales."""

    suffixes: tuple[str, str]  # of the names of numbers and of scales
    suffix: str  # of the name of the tensor that they make

    def shape(self, numbers: TensorInfo, scales: TensorInfo) -> tuple[int, ...] | None:
        """The tensor's shape; None if the two do not fit."""
        ...

    def values(self, numbers: np.ndarray, scales: np.ndarray) -> np.ndarray: ...


class MXFP4:
    """Numbers [experts, outputs, blocks, 16] and exponents [experts, outputs, blocks], both uint8,
    of a tensor [experts, 32 · blocks, outputs]. The lower four bits of a byte come first."""

    suffixes = ("_blocks", "_scales")
    suffix = ""

    def shape(self, numbers: TensorInfo, scales: TensorInfo) -> tuple[int, ...] | None:
        if numbers.shape != (*scales.shape, HALF_BLOCK) or len(scales.shape) != 3:
            return None
        if {numbers.dtype, scales.dtype} != {"uint8"}:
            return None
        experts, outputs, blocks = scales.shape
        return experts, 2 * HALF_BLOCK * blocks, outputs

    def values(self, numbers: np.ndarray, scales: np.ndarray) -> np.ndarray:
        experts, outputs, blocks = scales.shape
        values = np.empty((experts, 2 * HALF_BLOCK * blocks, outputs), np.float32)
        for expert in range(experts):  # one by one, for the memory
            low, high = numbers[expert] & 15, numbers[expert] >> 4
            pairs = BITS_AND_SIGN[np.stack([low, high], axis=-1)]  # [outputs, blocks, 16, 2]
            exponents = scales[expert].astype(np.int32)[..., None, None] - 127
            values[expert] = np.ldexp(pairs, exponents).reshape(outputs, -1).T
        return values


class FP8:
    """Numbers [outputs, inputs] in float8, and a factor for each block of them."""

    suffixes = (".weight", ".weight_scale_inv")
    suffix = ".weight"

    def __init__(self, block: tuple[int, int]) -> None:
        self._block = block

    def shape(self, numbers: TensorInfo, scales: TensorInfo) -> tuple[int, ...] | None:
        if len(numbers.shape) != 2 or not numbers.dtype.startswith("float8"):
            return None
        if scales.dtype not in ("float32", "bfloat16", "float16"):
            return None
        blocks = tuple(-(-size // of) for size, of in zip(numbers.shape, self._block, strict=True))
        return numbers.shape if scales.shape == blocks else None

    def values(self, numbers: np.ndarray, scales: np.ndarray) -> np.ndarray:
        rows, columns = self._block
        values = numbers.astype(np.float32)
        for number, factors in enumerate(scales.astype(np.float32)):
            part = values[number * rows : (number + 1) * rows]
            part *= np.repeat(factors, columns)[: part.shape[1]]
        return values


class Dequantised:
    """A `Source` whose quantised tensors are those that another one's stand for."""

    def __init__(self, source: Source, config: dict[str, Any], form: Format) -> None:
        self._source, self._form = source, form
        self.name, self.config = source.name, config
        self.preprocessor = source.preprocessor
        self._parts: dict[str, Parts] = {}
        self.tensors: Mapping[str, TensorInfo] = self._find()

    def read(self, name: str) -> np.ndarray:
        if name not in self._parts:
            return self._source.read(name)
        return self._form.values(*(self._source.read(part) for part in self._parts[name]))

    def write_tokenizer(self, folder: Path) -> bool:
        return self._source.write_tokenizer(folder)

    def write_vocabulary(self, folder: Path) -> bool:
        return self._source.write_vocabulary(folder)

    def _find(self) -> dict[str, TensorInfo]:
        """Those of the source, of which each pair of parts has become one."""
        stored, found = self._source.tensors, {}
        of_numbers, of_scales = self._form.suffixes
        for name, info in stored.items():
            if name.endswith(of_scales):
                stem = name.removesuffix(of_scales)
                if stem + of_numbers not in stored:
                    raise UserError(f"{self.name} has {name}, but no {stem}{of_numbers}")
                continue
            stem = name.removesuffix(of_numbers)
            if stem == name or stem + of_scales not in stored:
                found[name] = info
                continue
            scales = stored[stem + of_scales]
            shape = self._form.shape(info, scales)
            if shape is None:
                raise UserError(
                    f"{self.name} has {name}, {info.dtype} {list(info.shape)}, and {stem}"
                    f"{of_scales}, {scales.dtype} {list(scales.shape)}, which do not fit; fetch "
                    f"them again"
                )
            made = stem + self._form.suffix
            if made != name and made in stored:
                raise UserError(f"{self.name} has {made} as well as {name}; keep one of them")
            self._parts[made] = Parts(name, stem + of_scales)
            found[made] = TensorInfo(shape, "float32")
        return found


def dequantised(source: Source) -> Source:
    """The source with the weights that its quantised ones stand for, if it has such.

    Raises:
        UserError: numbers and scales that do not fit.
    """
    given = source.config.get(KEY)
    method = given.get("quant_method") if isinstance(given, dict) else None
    if not isinstance(given, dict) or method not in SUPPORTED:
        return source  # `refuse_other_models` says so
    config = {key: value for key, value in source.config.items() if key != KEY}
    if method == "mxfp4":
        return Dequantised(source, config, MXFP4())
    return Dequantised(source, config, FP8(_block(given.get("weight_block_size"), source.name)))


def _block(given: Any, name: str) -> tuple[int, int]:
    if isinstance(given, list) and len(given) == 2:
        rows, columns = given
        if type(rows) is int and type(columns) is int and min(rows, columns) > 0:
            return rows, columns
    raise UserError(
        f"{name}: {KEY} has weight_block_size {shown(given)}; allowed: two positive whole numbers, "
        f"as in [128, 128]"
    )
