"""The scalar memory of xLSTM, arXiv:2405.04517."""

import jax
import jax.numpy as jnp
from contracts.definition import Case, convolve, sigmoid, silu

from jaxformer.model.mixers.slstm import SLSTMConfig
from jaxformer.model.positions import NoPositionsConfig, PositionsUnion


def slstm(params: dict, x: jax.Array, config: SLSTMConfig, scheme: PositionsUnion):
    """Without a stabiliser: these sizes need none."""
    shape = (len(x), config.num_heads, -1)
    plain, convolved = x.reshape(shape), silu(convolve(params["conv"], x)).reshape(shape)
    sources = {
        "candidate": plain,
        "input_gate": convolved,
        "forget_gate": convolved,
        "output_gate": plain,
    }
    given = [
        jnp.einsum("lhi,hio->lho", source, params[name]["kernel"]) + bias
        for (name, source), bias in zip(sources.items(), params["bias"], strict=True)
    ]
    c = n = h = jnp.zeros_like(plain[0])
    rows = []
    for t in range(len(x)):
        z, i, f, o = (
            gate[t] + jnp.einsum("hi,hio->ho", h, recurrent)
            for gate, recurrent in zip(given, params["recurrent"], strict=True)
        )
        c = sigmoid(f) * c + jnp.exp(i) * jnp.tanh(z)
        n = sigmoid(f) * n + jnp.exp(i)
        h = sigmoid(o) * c / n
        rows.append(h)
    h = jnp.stack(rows)
    centred = h - h.mean(-1, keepdims=True)
    y = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * params["scale"]
    return y.reshape(x.shape)


CASES = {"slstm": Case(SLSTMConfig(num_heads=2), NoPositionsConfig(), slstm)}
