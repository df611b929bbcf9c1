"""One vector of all tokens of a row: the first, the last, their mean, or attention of a learned
probe to them (Lee et al., 2018, arXiv:1810.00825; in Vision Transformers, Zhai et al., 2021,
arXiv:2106.04560)."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from jaxformer.model.channel_mixers import build_channel_mixer
from jaxformer.model.channel_mixers.dense import DenseConfig
from jaxformer.model.dims import Dims
from jaxformer.model.mixers.options import NumHeads
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
from jaxformer.schema.base import Schema


def pool(how: Literal["first", "last", "mean"], x: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The first or the last token of each row, or the mean of all, of those that are not padding:
    x [batch, length, d_model] → [batch, d_model], float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    real = segment_ids != 0
    if how == "first":
        return wide[:, 0]
    if how == "last":
        last = x.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
        return jnp.take_along_axis(wide, last[:, None, None], axis=1)[:, 0]
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    return jnp.sum(jnp.where(real[..., None], wide, 0), axis=1) / count


class ProbeConfig(Schema):
    """Attention of a learned probe to all tokens, and an FFN of what it finds."""

    num_heads: NumHeads = 8
    ffn: DenseConfig = Field(description="of what the probe finds, with a norm before it")

    def check(self, d_model: int) -> None:
        if d_model % self.num_heads:
            raise ValueError(
                f"outputs have a probe with num_heads {self.num_heads}, which do not divide the "
                f"width {d_model} of what it attends to; allowed: a divisor"
            )

    def flops(self, d_model: int, length: int) -> float:
        """Forward FLOPs per row of `length` tokens."""
        matrices = 2 * d_model * (length + 1) * d_model + (3 if self.ffn.gated else 2) * (
            d_model * self.ffn.d_hidden
        )
        return 2.0 * matrices + 4.0 * d_model * length


class Probe(nn.Module):
    """y + ffn(norm(y)) with y = W_o concat_h softmax(q_h · k_h / √head_dim) v_h + b_o, where the
    query is of a learned vector, and keys and values are of all tokens; all products have biases.
    """

    config: ProbeConfig
    dims: Dims
    norm: NormConfig

    @nn.compact
    def __call__(self, x: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """x [batch, length, d_model] → [batch, d_model]."""
        dims, heads = self.dims, self.config.num_heads
        start = nn.with_logical_partitioning(dims.init.matrix(dims.d_model), ("vector",))
        probe = self.param("probe", start, (dims.d_model,), jnp.float32).astype(x.dtype)
        q = self._projected(probe[None], "query")[0]  # [heads, head_dim]
        k, v = self._projected(x, "key"), self._projected(x, "value")
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits = jnp.einsum("hd,blhd->bhl", q, k, preferred_element_type=wide)
        logits /= math.sqrt(dims.d_model // heads)
        logits = jnp.where((segment_ids != 0)[:, None], logits, jnp.finfo(wide).min)
        weights = jax.nn.softmax(logits).astype(x.dtype)
        y = Projection(
            (dims.d_model,),
            ("heads", "head_dim", "d_model"),
            dims.init.matrix(dims.d_model),
            use_bias=True,
            name="output",
        )(jnp.einsum("bhl,blhd->bhd", weights, v))
        ffn = build_channel_mixer(self.config.ffn, dims, name="ffn")
        rows = RowInfo(segment_ids[:, 0], segment_ids[:, 0])
        return y + ffn(Norm(self.norm, name="norm")(y), rows)[0]

    def _projected(self, x: jax.Array, name: str) -> jax.Array:
        """[..., d_model] → [..., heads, head_dim]."""
        dims, heads = self.dims, self.config.num_heads
        return Projection(
            (heads, dims.d_model // heads),
            ("d_model", "heads", "head_dim"),
            dims.init.matrix(dims.d_model),
            use_bias=True,
            name=name,
        )(x)
