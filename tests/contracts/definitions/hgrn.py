"""HGRN, arXiv:2311.04823, with the real and the imaginary part of the state apart."""

import jax
import jax.numpy as jnp
from contracts.definition import Case, sigmoid, silu

from jaxformer.model.mixers.hgrn import HGRNConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def hgrn(params: dict, x: jax.Array, config: HGRNConfig, scheme: PositionsUnion):
    def linear(name: str, token: jax.Array) -> jax.Array:
        return token @ params[name]["kernel"] + params[name]["bias"]

    channels = len(params["theta"])
    cos, sin = jnp.cos(params["theta"]), jnp.sin(params["theta"])
    real, imaginary, rows = 0.0, 0.0, []
    for token in x:
        c = silu(linear("input", token))
        kept = config.lower_bound + (1 - config.lower_bound) * sigmoid(linear("forget", token))
        turned = cos * real - sin * imaginary, sin * real + cos * imaginary
        real = kept * turned[0] + (1 - kept) * c[:channels]
        imaginary = kept * turned[1] + (1 - kept) * c[channels:]
        h = jnp.concatenate([real, imaginary])
        normal = (h - h.mean()) / jnp.sqrt(h.var() + 1e-5)
        normal = normal * params["norm"]["scale"] + params["norm"]["bias"]
        rows.append(linear("output", normal * silu(linear("gate", token))))
    return jnp.stack(rows)


CASES = {
    "hgrn": Case(HGRNConfig(expansion=1.5), NoPositionsConfig(), hgrn),
    "hgrn_lower_bound": Case(HGRNConfig(lower_bound=0.3), NoPositionsConfig(), hgrn),
}
