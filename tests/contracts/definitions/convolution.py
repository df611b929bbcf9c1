"""The Conformer's convolution module, arXiv:2005.08100."""

import jax
from contracts.definition import Case, convolve, rms, sigmoid, silu

from jaxformer.model.mixers.convolution import ConvolutionConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def convolution(
    params: dict,
    x: jax.Array,
    config: ConvolutionConfig,
    scheme: PositionsUnion,
    is_causal: bool = True,
) -> jax.Array:
    u = (x @ params["input"]["kernel"]) * sigmoid(x @ params["gate"]["kernel"])
    y = convolve(params["conv"], u)
    if not is_causal:
        y += convolve(params["conv_behind"], u[::-1])[::-1]
    return silu(rms(y, params["norm"]["scale"])) @ params["output"]["kernel"]


def encoder(
    params: dict, x: jax.Array, config: ConvolutionConfig, scheme: PositionsUnion
) -> jax.Array:
    return convolution(params, x, config, scheme, is_causal=False)


CONFIG = ConvolutionConfig(width=3, expansion=1.5)
CASES = {"convolution": Case(CONFIG, NoPositionsConfig(), convolution)}
ENCODERS = {"encoder_convolution": Case(CONFIG, NoPositionsConfig(), encoder, is_causal=False)}
