"""Arrays with NaN on either side, for programs that must not read beyond them."""

import jax
import numpy as np

# XLA takes a NumPy array as it lies, without a copy, where it starts at a multiple of this.
ALIGNMENT = 64
GUARD = 4096  # numbers on either side


def guarded(array: np.ndarray) -> jax.Array:
    """The same numbers on the CPU device, in the middle of a buffer of NaN."""
    array = np.asarray(array)
    buffer = np.full(2 * GUARD + array.size, np.nan, array.dtype)
    offset = (-buffer.ctypes.data // array.itemsize) % (ALIGNMENT // array.itemsize) + GUARD
    middle = buffer[offset : offset + array.size].reshape(array.shape)
    middle[...] = array
    there = jax.device_put(middle, jax.devices("cpu")[0], may_alias=True)
    assert there.unsafe_buffer_pointer() == middle.ctypes.data, "it was copied"
    return there
