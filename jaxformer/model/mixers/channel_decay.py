"""What the delta rules with a decay per key channel share: projections of low rank to the decay and
to the output gate, as in Kimi Delta Attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.decay_init import a_log_init, dt_bias_init
from jaxformer.model.mixers.convolved_memory import ConvolvedMemory
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.projections import Projection


class ChannelDecay(ConvolvedMemory):
    """The rank of the projections is `head_dim`; all methods are for inside the compact call."""

    def _channel_log_decay(self, x: jax.Array) -> jax.Array:
        """−e^{A} softplus(W₂ W₁ x + b) [batch, length, heads, head_dim], with A per head."""
        heads, key, _ = sizes = self.config.sizes
        names = nn.with_logical_partitioning
        a_log = self.param("a_log", names(a_log_init(1.0, 16.0), ("heads",)), (heads,), jnp.float32)
        dt_bias = self.param(
            "dt_bias", names(dt_bias_init, ("heads", "head_dim")), (heads, key), jnp.float32
        )
        step = self._low_rank(x, "decay", key).astype(sizes.wide(x.dtype)) + dt_bias
        return -jnp.exp(a_log)[:, None] * nn.softplus(step)

    def _low_rank(
        self, x: jax.Array, name: str, features: int, *, use_bias: bool = False
    ) -> jax.Array:
        """W₂ W₁ x (+ b) [batch, length, heads, features]."""
        rank, init = self.config.head_dim, self.dims.init
        low = Projection(
            (rank,), ("d_model", "rank"), init.matrix(self.dims.d_model), name=f"{name}_in"
        )(x)
        return Projection(
            (self.config.num_heads, features),
            ("rank", "heads", "head_dim"),
            init.matrix(rank),
            use_bias,
            name=f"{name}_out",
        )(low)

    def _gated_output(self, o: jax.Array, gate: jax.Array) -> jax.Array:
        """W_o (RMSNorm(o) ⊙ gate), of o and gate [batch, length, heads, value]."""
        heads, value = o.shape[2:]
        norm = Norm(NormConfig(eps=self.config.norm_eps), axis_name="head_dim", name="norm")
        return Projection(
            (self.dims.d_model,),
            ("heads", "head_dim", "d_model"),
            self.dims.init.output_matrix(heads * value, self.dims.num_layers),
            name="output",
        )(norm(o) * gate)

    def _low_rank_flops(self) -> float:
        """Forward FLOPs per token of the projections to the decay and the output gate."""
        rank, sizes = self.config.head_dim, self.config.sizes
        features = 2 * self.dims.d_model + sizes.heads * (sizes.key + sizes.value)
        return 2.0 * rank * features
