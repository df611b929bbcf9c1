"""Several mixers side by side on one input, like the hybrid heads of Hymba (Dong et al., 2024,
arXiv:2411.13676)."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import Field

from jaxformer.model.mixers.base import Cache, Mixer, MixerConfig, build_mixer
from jaxformer.model.mixers.kept import mix
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.rows import RowInfo


class ParallelConfig(MixerConfig):
    kind: Literal["parallel"] = "parallel"
    mixers: tuple[MixerConfig, ...] = Field(
        min_length=2, strict=False, description="the mixers, each with its own options"
    )

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        for mixer in self.mixers:
            mixer.check(d_model, positions)

    @property
    def sees_any_order(self) -> bool:
        return all(mixer.sees_any_order for mixer in self.mixers)

    @property
    def is_causal(self) -> bool:
        return all(mixer.is_causal for mixer in self.mixers)

    @property
    def sees_both_ways(self) -> bool:
        return all(mixer.sees_both_ways for mixer in self.mixers)

    @property
    def reads_source(self) -> bool:
        return any(mixer.reads_source for mixer in self.mixers)

    @property
    def needs_grid(self) -> bool:
        return any(mixer.needs_grid for mixer in self.mixers)

    @property
    def bias_heads(self) -> frozenset[int]:
        return frozenset().union(*(mixer.bias_heads for mixer in self.mixers))

    def uses(self, positions: PositionsUnion) -> bool:
        return any(mixer.uses(positions) for mixer in self.mixers)


class Parallel(Mixer):
    """y = Σ_i β_i ⊙ mixer_i(x), with a learned weight β_i per channel that starts at 1/n.

    Every mixer has its own output matrix; together they are Hymba's one matrix over both.
    """

    form = "of its parts"

    config: ParallelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: tuple[Cache, ...] | None = None
    ) -> tuple[jax.Array, tuple[Cache, ...] | None]:
        count = len(self.config.mixers)
        equal = nn.initializers.constant(1 / count)
        beta = self.param(
            "beta",
            nn.with_logical_partitioning(equal, ("branch", "d_model")),
            (count, self.dims.d_model),
            jnp.float32,
        ).astype(x.dtype)
        total, longer = jnp.zeros_like(x), []
        for index, config in enumerate(self.config.mixers):
            mixer = self._mixer(config, name=f"{config.kind}_{index}")
            own = None if cache is None else cache[index]
            y, own = mix(mixer, x, rows, own)
            total += beta[index] * y
            longer.append(own)
        return total, None if cache is None else tuple(longer)

    @nn.nowrap
    def _mixer(self, config: MixerConfig, **place: str | None) -> Mixer:
        return build_mixer(config, self.dims, self.scheme, number=self.number, **place)

    @property
    def _parts(self) -> list[Mixer]:
        return [self._mixer(config, parent=None) for config in self.config.mixers]

    @property
    def takes_back_itself(self) -> bool:
        return True  # part by part

    def take_back(self, kept: tuple[Any, ...], counts: jax.Array) -> tuple[Cache, ...]:
        parts = zip(self._parts, kept, strict=True)
        return tuple(mixer.take_back(own, counts) for mixer, own in parts)

    def kept_flops(self) -> float:
        return sum(mixer.kept_flops() for mixer in self._parts)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> tuple[Cache, ...]:
        return tuple(m.init_cache(batch, max_length, dtype) for m in self._parts)

    def kernels(self, length: int) -> tuple[str, ...]:
        return tuple(chosen for mixer in self._parts for chosen in mixer.kernels(length))

    def flops(self, length: int) -> float:
        combine = 2.0 * len(self.config.mixers) * self.dims.d_model
        return combine + sum(mixer.flops(length) for mixer in self._parts)

    def cache_bytes(self, length: int) -> int:
        return sum(mixer.cache_bytes(length) for mixer in self._parts)
