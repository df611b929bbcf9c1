"""minGRU, arXiv:2410.01201."""

import jax
import jax.numpy as jnp
from contracts.definition import Case

from jaxformer.model.mixers.min_gru import MinGRUConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def min_gru(params: dict, x: jax.Array, config: MinGRUConfig, scheme: PositionsUnion):
    h, rows = 0.0, []
    for token in x:
        z = 1 / (1 + jnp.exp(-token @ params["update"]["kernel"]))
        h = (1 - z) * h + z * (token @ params["candidate"]["kernel"])
        rows.append(h @ params["output"]["kernel"])
    return jnp.stack(rows)


CASES = {"min_gru": Case(MinGRUConfig(expansion=1.5), NoPositionsConfig(), min_gru)}
