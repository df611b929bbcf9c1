"""mLSTM: xLSTM's matrix memory with exponential gates (Beck et al., 2024, arXiv:2405.04517).

Projections, norm and output gate around the cell are those of xLSTM 7B (Beck et al., 2025,
arXiv:2503.13427), which has no convolution; gates start as in the first paper's code.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from pydantic import Field, PositiveFloat

from jaxformer.model.mixers.base import Mixer, MixerConfig
from jaxformer.model.mixers.matrix_memory import MemorySizes, heads_divide
from jaxformer.model.mixers.options import KeyShare, NumHeads, ValueShare
from jaxformer.model.norms import layer_normalize
from jaxformer.model.positions import PositionsUnion
from jaxformer.model.projections import Projection, project_heads
from jaxformer.model.rows import RowInfo
from jaxformer.ops import shards
from jaxformer.ops.decay import State
from jaxformer.ops.decayed_outer_product import decayed_outer_product


class MLSTMConfig(MixerConfig):
    kind: Literal["mlstm"] = "mlstm"
    num_heads: NumHeads = 4
    key_expansion: KeyShare = 0.5
    value_expansion: ValueShare = 1.0
    forget_gate: Literal["sigmoid", "exponential"] = Field(
        "sigmoid", description="the activation of the forget gate"
    )
    gate_softcap: PositiveFloat | None = Field(
        None, description="c in c · tanh(logits / c) for both gates (15 in xLSTM 7B); null for none"
    )

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        heads_divide("key_expansion × d_model", self.key_expansion * d_model, self.num_heads)
        heads_divide("value_expansion × d_model", self.value_expansion * d_model, self.num_heads)

    def projected(self, d_model: int) -> MemorySizes:
        """Features of keys and values."""
        key, value = (round(f * d_model) for f in (self.key_expansion, self.value_expansion))
        return MemorySizes(self.num_heads, key // self.num_heads, value // self.num_heads)

    def sizes(self, d_model: int) -> MemorySizes:
        """The memory's sizes: values get a last feature, 1, whose column is the normaliser."""
        heads, key, value = self.projected(d_model)
        return MemorySizes(heads, key, value + 1)


@struct.dataclass
class MLSTMCache:
    memory: State  # C_t and n_t side by side, times e^{−m_t}
    stabilizer: jax.Array  # [batch, heads], m_t


class MLSTM(Mixer):
    """C_t = f_t C_{t−1} + i_t k_t v_tᵀ,  n_t = f_t n_{t−1} + i_t k_t,

    h_t = C_tᵀ q_t / max(|n_tᵀ q_t|, 1),  y = W_o (σ(W_g x) ⊙ scale ⊙ LayerNorm(h)) per head,

    with k = W_k x / √K, i = e^ĩ and f = σ(f̃) or e^f̃ (equations 19 to 27). The memory is stored
    times e^{−m_t}, with m_t = max(log f_t + m_{t−1}, ĩ_t) (equation 15), which cancels.
    """

    config: MLSTMConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, cache: MLSTMCache | None = None
    ) -> tuple[jax.Array, MLSTMCache | None]:
        heads, key, value = self.config.projected(self.dims.d_model)
        wide = self._sizes.wide(x.dtype)
        start = self.init_cache(x.shape[0], x.shape[1], x.dtype) if cache is None else cache
        q = project_heads(x, self.dims, "query", heads, key)
        k = project_heads(x, self.dims, "key", heads, key).astype(wide) * key**-0.5
        v = project_heads(x, self.dims, "value", heads, value).astype(wide)

        write = self._gate_logits(x, "input_gate", nn.initializers.normal(0.1))
        log_forget = self._gate_logits(x, "forget_gate", _forget_bias_init)
        if self.config.forget_gate == "sigmoid":
            log_forget = nn.log_sigmoid(log_forget)
        before = shards.documents_before(rows.segment_ids, start.memory.segment)
        same = (before == rows.segment_ids)[..., None]
        # m affects only the rounding of h, so no gradient goes through it.
        m_before, m = _stabilizer(
            *jax.lax.stop_gradient((jnp.where(same, log_forget, -jnp.inf), write, start.stabilizer))
        )
        log_decay = jnp.where(same, log_forget + m_before - m, 0.0)
        ones = jnp.ones((*v.shape[:-1], 1), wide)
        sums, memory = decayed_outer_product(
            q,
            k * jnp.exp(write - m)[..., None],
            jnp.concatenate([v, ones], axis=-1),
            log_decay[..., None],
            rows.segment_ids,
            start.memory,
        )
        h = sums[..., :-1] / jnp.maximum(jnp.abs(sums[..., -1:]), jnp.exp(-m)[..., None])

        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("heads", "head_dim")),
            (heads, value),
            jnp.float32,
        )
        gate = nn.sigmoid(project_heads(x, self.dims, "gate", heads, value))
        y = Projection(
            (self.dims.d_model,),
            ("heads", "head_dim", "d_model"),
            self.dims.init.output_matrix(heads * value, self.dims.num_layers),
            name="output",
        )((layer_normalize(h, 1e-6) * scale).astype(x.dtype) * gate)
        return y, None if cache is None else MLSTMCache(memory, m[:, -1])

    def _gate_logits(
        self, x: jax.Array, name: str, bias_init: nn.initializers.Initializer
    ) -> jax.Array:
        """[batch, length, heads], from weights that start at zero."""
        heads = self._sizes.heads
        logits = Projection((heads,), ("d_model", "heads"), nn.initializers.zeros, name=name)(x)
        bias_init = nn.with_logical_partitioning(bias_init, ("heads",))
        logits = logits.astype(self._sizes.wide(x.dtype))
        logits += self.param(f"{name}_bias", bias_init, (heads,), jnp.float32)
        cap = self.config.gate_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    @property
    def _sizes(self) -> MemorySizes:
        return self.config.sizes(self.dims.d_model)

    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> MLSTMCache:
        sizes = self._sizes
        stabilizer = jnp.zeros((batch, sizes.heads), sizes.wide(dtype))
        return MLSTMCache(sizes.empty(batch, dtype), stabilizer)

    def flops(self, length: int) -> float:
        heads, key, value = self.config.projected(self.dims.d_model)
        features = heads * (2 * key + 3 * value + 2)
        return 2.0 * self.dims.d_model * features + self._sizes.flops(length)

    def cache_bytes(self, length: int) -> int:
        sizes, dtype = self._sizes, self.dims.dtype
        return sizes.bytes(dtype) + sizes.heads * sizes.wide(dtype).itemsize


def _stabilizer(
    log_forget: jax.Array, write: jax.Array, first: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """m_{t−1} and m_t = max(log f_t + m_{t−1}, ĩ_t) [batch, length, heads], from m_{−1} = first."""

    def combine(
        left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (log_left, m_left), (log_right, m_right) = left, right
        return log_left + log_right, jnp.maximum(log_right + m_left, m_right)

    log_total, m = jax.lax.associative_scan(combine, (log_forget, write), axis=1)

    def through(m: jax.Array, shard: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.maximum(shard[0] + m, shard[1])

    first = shards.state_before(first, through, (log_total[:, -1], m[:, -1]))[:, None]
    m = jnp.maximum(log_total + first, m)
    return jnp.concatenate([first, m[:, :-1]], axis=1), m


def _forget_bias_init(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """3 to 6 over the heads, in equal steps."""
    (num_heads,) = shape
    return jnp.linspace(3.0, 6.0, num_heads, dtype=dtype)
