"""One layer: a token mixer and an FFN, each with its norms, on the residual stream."""

from collections.abc import Callable

import flax.linen as nn
import jax

from jaxformer.model.config import Layer
from jaxformer.model.dims import Dims
from jaxformer.model.ffn import FFN
from jaxformer.model.mixers import Cache, build_mixer
from jaxformer.model.norms import Norm, NormConfig

RESIDUAL = ("batch", "length", "d_model")


class Block(nn.Module):
    """x ← x + mixer(norm(x)), x ← x + ffn(norm(x)); other placements as in `NormConfig`."""

    layer: Layer
    norm: NormConfig
    dims: Dims

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """x [batch, length, d_model] → (x, cache); the arguments are the mixer's."""
        mixer = build_mixer(self.layer.mixer, self.dims, self.layer.positions, name="mixer")
        ffn = FFN(self.layer.ffn, self.dims, name="ffn")

        def mix(x: jax.Array) -> jax.Array:
            nonlocal cache
            y, cache = mixer(x, positions=positions, segment_ids=segment_ids, cache=cache)
            return y

        x = self._add(x, mix, "mixer_norm")
        x = self._add(x, ffn, "ffn_norm")
        return x, cache

    def _add(self, x: jax.Array, f: Callable[[jax.Array], jax.Array], name: str) -> jax.Array:
        match self.norm.placement:
            case "pre":
                x = x + f(Norm(self.norm, name=name)(x))
            case "post":
                x = Norm(self.norm, name=name)(x + f(x))
            case "sandwich":
                x = x + Norm(self.norm, name=f"{name}_after")(f(Norm(self.norm, name=name)(x)))
        return nn.with_logical_constraint(x, RESIDUAL)


class Group(nn.Module):
    """One repetition of a pattern of layers."""

    layers: tuple[Layer, ...]
    norm: NormConfig
    dims: Dims

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        caches: tuple[Cache, ...] | None,
        positions: jax.Array,
        segment_ids: jax.Array,
    ) -> tuple[jax.Array, tuple[Cache, ...] | None]:
        """x [batch, length, d_model] → (x, a cache a layer); no keywords, for `nn.scan`."""
        longer = []
        for index, layer in enumerate(self.layers):
            block = Block(layer, self.norm, self.dims, name=f"layer_{index}")
            cache = None if caches is None else caches[index]
            x, cache = block(x, positions=positions, segment_ids=segment_ids, cache=cache)
            longer.append(cache)
        return x, None if caches is None else tuple(longer)
