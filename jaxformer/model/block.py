"""One layer: a token mixer and a channel mixer on the residual stream."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.channel_mixers import build_channel_mixer
from jaxformer.model.config import Layer
from jaxformer.model.dims import Dims
from jaxformer.model.mixers import Cache, build_mixer
from jaxformer.model.norms import NormConfig
from jaxformer.model.residuals import Residual
from jaxformer.model.rows import LayerAux, RowInfo


class Block(nn.Module):
    """x ← x + mixer(norm(x)), x ← x + ffn(norm(x)), each where the layer has one; `Residual` says
    how else they may be added."""

    layer: Layer
    norm: NormConfig
    dims: Dims

    @nn.compact
    def __call__(
        self, stream: jax.Array, rows: RowInfo, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        """stream [batch, length, d_model] → (stream, the mixer's cache, what else the layer says).

        Its statistics are `activation`, the sum over tokens of the stream's mean square.
        """
        layer, shape = self.layer, stream.shape
        stream = stream.reshape(-1, shape[-1])  # XLA on a CPU has faster code for two dimensions
        if layer.mixer is not None:
            residual = Residual(self.norm, "mixer")
            mixer = build_mixer(layer.mixer, self.dims, layer.positions, name="mixer")
            y, cache = mixer(residual.read(stream).reshape(shape), rows, cache)
            stream = residual.write(stream, y.reshape(stream.shape))
        if layer.ffn is not None:
            residual = Residual(self.norm, "ffn")
            ffn = build_channel_mixer(layer.ffn, self.dims, name="ffn")
            stream = residual.write(stream, ffn(residual.read(stream), rows))
        stats = {"activation": _squares(stream, rows)} if self.dims.statistics else {}
        return stream.reshape(shape), cache, LayerAux(stats)


def _squares(stream: jax.Array, rows: RowInfo) -> jax.Array:
    """The sum over tokens that are no padding of the mean square of [batch · length, d_model]."""
    wide = stream.astype(jnp.promote_types(stream.dtype, jnp.float32))
    squares = jnp.mean(wide * wide, axis=-1)
    return jnp.sum(jnp.where(rows.segment_ids.reshape(-1) != 0, squares, 0.0))


class Group(nn.Module):
    """One repetition of a pattern of layers."""

    layers: tuple[Layer, ...]
    norm: NormConfig
    dims: Dims

    @nn.compact
    def __call__(
        self, stream: jax.Array, caches: tuple[Cache, ...] | None, rows: RowInfo
    ) -> tuple[jax.Array, tuple[tuple[Cache, ...] | None, tuple[LayerAux, ...]]]:
        """stream [batch, length, d_model] → (stream, (caches, aux)), one of both per layer; no
        keywords, for `nn.scan`."""
        longer, said = [], []
        for index, layer in enumerate(self.layers):
            block = Block(layer, self.norm, self.dims, name=f"layer_{index}")
            stream, cache, aux = block(stream, rows, None if caches is None else caches[index])
            longer.append(cache)
            said.append(aux)
        return stream, (None if caches is None else tuple(longer), tuple(said))
