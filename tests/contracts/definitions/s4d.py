"""S4D-Real, arXiv:2206.11893."""

import jax
import jax.numpy as jnp
from contracts.definition import Case, sigmoid

from jaxformer.model.mixers.s4d import S4DConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def s4d(params: dict, x: jax.Array, config: S4DConfig, scheme: PositionsUnion):
    a = -jnp.exp(params["a_log"])
    step = jnp.exp(params["log_step"])[:, None]
    memory, rows = jnp.zeros_like(a), []
    for token in x:
        memory = jnp.exp(step * a) * memory + (jnp.exp(step * a) - 1) / a * token[:, None]
        z = jax.nn.gelu(jnp.sum(memory * params["c"], axis=1) + params["skip"] * token)
        rows.append(z @ params["output"]["kernel"] * sigmoid(z @ params["gate"]["kernel"]))
    return jnp.stack(rows)


CASES = {
    "s4d": Case(S4DConfig(state_size=5), NoPositionsConfig(), s4d),
}
