"""mLSTM, arXiv:2405.04517."""

import math

import jax
import jax.numpy as jnp
from contracts.definition import Case, heads_of, sigmoid

from jaxformer.model.mixers.mlstm import MLSTMConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def mlstm(params: dict, x: jax.Array, config: MLSTMConfig, scheme: PositionsUnion):
    """Equations 19 to 27 as they stand, without a stabiliser; C is values × keys."""
    q, k, v = (heads_of(x, params[name]["kernel"]) for name in ("query", "key", "value"))
    k /= math.sqrt(k.shape[-1])

    def gate(name: str) -> jax.Array:
        logits = x @ params[name]["kernel"] + params[f"{name}_bias"]
        cap = config.gate_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    i = jnp.exp(gate("input_gate"))
    f = {"sigmoid": sigmoid, "exponential": jnp.exp}[config.forget_gate](gate("forget_gate"))
    h = jnp.zeros_like(v)
    for head in range(config.num_heads):
        memory, normaliser = jnp.zeros((v.shape[-1], k.shape[-1])), jnp.zeros(k.shape[-1])
        for t in range(len(x)):
            f_t, i_t, k_t, q_t = f[t, head], i[t, head], k[t, head], q[t, head]
            memory = f_t * memory + i_t * jnp.outer(v[t, head], k_t)
            normaliser = f_t * normaliser + i_t * k_t
            row = memory @ q_t / jnp.maximum(jnp.abs(normaliser @ q_t), 1.0)
            h = h.at[t, head].set(row)
    centred = h - jnp.mean(h, axis=-1, keepdims=True)
    normal = centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)
    y = sigmoid(heads_of(x, params["gate"]["kernel"])) * normal * params["scale"]
    return jnp.einsum("lhv,hvd->ld", y, params["output"]["kernel"])


CASES = {
    "mlstm": Case(MLSTMConfig(num_heads=2, gate_softcap=15.0), NoPositionsConfig(), mlstm),
    "mlstm_exponential": Case(
        MLSTMConfig(
            num_heads=2,
            key_expansion=1.5,
            value_expansion=0.5,
            forget_gate="exponential",
        ),
        NoPositionsConfig(),
        mlstm,
    ),
}
