"""Mamba, arXiv:2312.00752."""

import jax
import jax.numpy as jnp
from contracts.definition import Case, convolve, rms, silu, softplus

from jaxformer.model.mixers.mamba import MambaConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def mamba(params: dict, x: jax.Array, config: MambaConfig, scheme: PositionsUnion):
    inputs = silu(convolve(params["conv"], x @ params["input"]["kernel"]))
    a = -jnp.exp(params["a_log"])
    rank = params["dt"]["kernel"].shape[0]
    memory, rows = jnp.zeros_like(a), []

    def normed(y: jax.Array, name: str) -> jax.Array:
        return rms(y, params[name]["scale"]) if config.inner_norms else y

    for token, u in zip(x, inputs, strict=True):
        selected = u @ params["select"]["kernel"]
        b = normed(selected[rank : rank + config.state_size], "b_norm")
        c = normed(selected[rank + config.state_size :], "c_norm")
        low = normed(selected[:rank], "dt_norm")
        dt = softplus(low @ params["dt"]["kernel"] + params["dt_bias"])
        memory = jnp.exp(dt[:, None] * a) * memory + jnp.outer(dt * u, b)
        y = (memory @ c + params["skip"] * u) * silu(token @ params["gate"]["kernel"])
        rows.append(y @ params["output"]["kernel"])
    return jnp.stack(rows)


CASES = {
    "mamba": Case(MambaConfig(expansion=1.5, state_size=5, dt_rank=3), NoPositionsConfig(), mamba),
    "mamba_inner_norms": Case(
        MambaConfig(expansion=1.5, state_size=5, dt_rank=3, inner_norms=True),
        NoPositionsConfig(),
        mamba,
    ),
}
