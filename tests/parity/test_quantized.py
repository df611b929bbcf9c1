"""Quantised weights are the numbers that transformers makes of them."""

import ml_dtypes
import numpy as np
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from jaxformer.checkpoint.interop.quantized import FP8, MXFP4


def test_four_bits_with_a_power_of_two() -> None:
    """Inputs and outputs are equally many, so that no shape tells them apart."""
    random = np.random.default_rng(0)
    numbers = random.integers(0, 256, (2, 64, 2, 16)).astype(np.uint8)
    scales = random.integers(110, 140, (2, 64, 2)).astype(np.uint8)
    theirs = convert_moe_packed_tensors(torch.tensor(numbers), torch.tensor(scales))
    ours = MXFP4().values(numbers, scales)
    np.testing.assert_array_equal(ours, theirs.float().numpy())


def test_eight_bits_with_a_factor_for_a_block() -> None:
    torch.manual_seed(0)
    numbers = torch.randn(20, 24).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2)
    each = scales.repeat_interleave(8, 0)[:20].repeat_interleave(16, 1)[:, :24]
    as_float8 = numbers.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    ours = FP8((8, 16)).values(as_float8, scales.numpy())
    np.testing.assert_array_equal(ours, (numbers.float() * each).numpy())
