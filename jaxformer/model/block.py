"""One layer: a token mixer and an FFN, each with its norms, on the residual stream."""

from collections.abc import Callable

import flax.linen as nn
import jax

from jaxformer.model.config import Layer
from jaxformer.model.dims import Dims
from jaxformer.model.ffn import FFN
from jaxformer.model.mixers import Cache, build_mixer
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.parallel.stream import constrain_stream, gather_tokens, scatter_tokens


class Block(nn.Module):
    """x ← x + mixer(norm(x)), x ← x + ffn(norm(x)) if there is an FFN; other placements of the
    norm as in `NormConfig`."""

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

        def mix(x: jax.Array) -> jax.Array:
            nonlocal cache
            rows = x.reshape(*positions.shape, -1)
            y, cache = mixer(rows, positions=positions, segment_ids=segment_ids, cache=cache)
            return y.reshape(x.shape)

        shape = x.shape
        x = x.reshape(-1, shape[-1])  # XLA on a CPU has faster code for two dimensions
        x = self._add(x, mix, "mixer_norm")
        if self.layer.ffn is not None:
            x = self._add(x, FFN(self.layer.ffn, self.dims, name="ffn"), "ffn_norm")
        return x.reshape(shape), cache

    def _add(
        self, x: jax.Array, sub_layer: Callable[[jax.Array], jax.Array], name: str
    ) -> jax.Array:
        def f(x: jax.Array) -> jax.Array:
            return scatter_tokens(sub_layer(gather_tokens(x)))

        match self.norm.placement:
            case "pre":
                x = x + f(Norm(self.norm, name=name)(x))
            case "post":
                x = Norm(self.norm, name=name)(x + f(x))
            case "sandwich":
                x = x + Norm(self.norm, name=f"{name}_after")(f(Norm(self.norm, name=name)(x)))
            case "after":
                x = x + Norm(self.norm, name=name)(f(x))
        return constrain_stream(x)


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
