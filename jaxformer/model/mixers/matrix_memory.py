"""The sizes, costs and empty state of a memory S [heads, K, V] that mixers read and write."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.ops.decay import State

CHUNK = 64


class MemorySizes(NamedTuple):
    """The number of heads, and the features of a key and of a value per head."""

    heads: int
    key: int
    value: int

    @staticmethod
    def wide(dtype: DTypeLike) -> jnp.dtype:
        """The type of the memory: float32 at least."""
        return jnp.promote_types(dtype, jnp.float32)

    def empty(self, batch: int, dtype: DTypeLike) -> State:
        """The memory before the first token."""
        shape = (batch, self.heads, self.key, self.value)
        return State(jnp.zeros(shape, self.wide(dtype)), jnp.full((batch,), -1, jnp.int32))

    def bytes(self, dtype: DTypeLike) -> int:
        """Bytes of one sequence's memory."""
        return self.heads * self.key * self.value * self.wide(dtype).itemsize + 4

    def flops(self, length: int, *, writes: int = 1, solves: bool = False) -> float:
        """Forward FLOPs per token in chunks: reading and writing the memory, and pairs in a chunk.

        `writes`: rows that a token writes. `solves`: whether a triangular system gives the rows.
        """
        chunk = min(CHUNK, length)
        pairs = 2.0 * writes * chunk * (self.key + self.value)
        memory = 2.0 * (1 + writes) * self.key * self.value
        if solves:
            # Building and solving the system takes as many pairs again, and an inverse by halves.
            # It reads the memory as queries do.
            pairs += pairs + 2.0 * chunk * chunk / 3.0
            memory += 2.0 * self.key * self.value
        return self.heads * (pairs + memory)


class MatrixMemoryConfig(MixerConfig):
    """The options of a mixer whose whole cache is one memory."""

    def sizes(self, d_model: int) -> MemorySizes:
        """The memory's sizes at this width."""
        raise NotImplementedError


class MatrixMemory(Mixer):
    """A mixer whose whole cache is one memory."""

    config: MatrixMemoryConfig

    @property
    def _sizes(self) -> MemorySizes:
        return self.config.sizes(self.dims.d_model)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> State:
        return self._sizes.empty(batch, dtype)

    def cache_bytes(self, length: int) -> int:
        return self._sizes.bytes(self.dims.dtype)


def heads_divide(name: str, width: float, num_heads: int) -> None:
    """Check that the heads divide a width.

    Raises:
        ValueError: when `num_heads` does not divide `width`.
    """
    if width % num_heads:
        raise ValueError(
            f"{name} = {width:g} is not divisible by num_heads {num_heads}; change one of them"
        )
