from collections.abc import Callable

import numpy as np
import pytest

from jaxformer.checkpoint.interop import blocks
from jaxformer.checkpoint.interop.blocks import contiguous_blocks

VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it lies": lambda x: x,
    "transposed": lambda x: x.T,
    "heads": lambda x: x.T.reshape(5, 8, 30),
    "a part": lambda x: x[3:17, ::-1],
    "one number": lambda x: x[2, 3],
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_blocks_are_the_numbers_in_order(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", size)
    values = VIEWS[name](np.arange(30 * 40, dtype=np.int32).reshape(30, 40))
    parts = list(contiguous_blocks(values, np.float32))
    assert all(part.flags.c_contiguous and part.dtype == np.float32 for part in parts)
    joined = np.concatenate([part.reshape(-1) for part in parts])
    np.testing.assert_array_equal(joined, values.reshape(-1).astype(np.float32))
