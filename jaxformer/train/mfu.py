"""Model FLOPs utilisation: what the model needs, over what the devices could do."""

import time
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxformer.parallel.chips import CHIPS

# Dense bfloat16 FLOP/s of one device, from the vendors' data sheets, by jax.Device.device_kind.
PEAKS = {
    **{chip.device_kind: chip.peak_flops for chip in CHIPS.values()},
    "TPU v5p": CHIPS["v5p"].peak_flops,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


class Peak(NamedTuple):
    """FLOP/s of all devices together, and where the figure is from."""

    flops: float
    source: str


def peak_flops(devices: Sequence[jax.Device], dtype: DTypeLike) -> Peak:
    """What the devices could do at best.

    A known accelerator counts with its data sheet's bfloat16 rate, whatever the precision in use.
    Any other device, such as a CPU, counts with the rate of the fastest of ten matrix products
    [1024, 1024] × [1024, 1024] in `dtype`, measured once (0.2 s) on a machine that should be idle.
    The devices of a CPU share its cores, so they are measured as one.
    """
    kind = devices[0].device_kind
    if kind in PEAKS:
        return Peak(PEAKS[kind] * len(devices), f"{len(devices)} × {kind}, data sheet")
    rate = _measured_flops(devices[0], jnp.dtype(dtype).name)
    count = 1 if devices[0].platform == "cpu" else len(devices)
    return Peak(
        rate * count, f"{devices[0].platform}, measured with a {jnp.dtype(dtype).name} product"
    )


@cache
def _measured_flops(device: jax.Device, dtype: str) -> float:
    size, best = 1024, float("inf")
    x = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    for _ in range(10):
        began = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
