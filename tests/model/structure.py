"""A small model in float64, and the equations of its parts written without it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model

VOCAB, LENGTH, WIDTH, HEADS, EPS = 7, 5, 6, 2, 1e-6
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
MODEL = {
    "d_model": WIDTH,
    "num_layers": 4,
    "vocab_size": VOCAB,
    "mixer": {"kind": "attention", "num_heads": HEADS},
    "ffn": {"kind": "relu", "d_hidden": 8},
    "positions": {"kind": "none"},
    "init": {"std": 0.5, "output": "plain"},
}

Params = dict[str, Any]
Layers = Callable[[jax.Array, list[Params]], jax.Array]


def model_of(**options: object) -> LanguageModel:
    return build_model(ModelConfig.model_validate(MODEL | options), dtype=jnp.float64)


def parameters(model: LanguageModel, spread: float = 0.0) -> Params:
    """As the model starts, with normal numbers of this spread added to each."""
    start = meta.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS)["params"])
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.array(x) + spread * random.normal(size=x.shape), start)


def logits(model: LanguageModel, params: Params) -> jax.Array:
    return jax.jit(model.apply)({"params": params}, TOKENS)


def of_layer(params: Params, layer: int) -> Params:
    return jax.tree.map(lambda leaf: leaf[layer], params["stack"]["groups"]["layer_0"])


def normed(x: jax.Array, norm: Params) -> jax.Array:
    return norm["scale"] * x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPS)


def project(x: jax.Array, own: Params) -> jax.Array:
    return jnp.einsum("btd,dhe->bthe", x, own["kernel"])


def attention(x: jax.Array, own: Params, v: jax.Array | None = None) -> jax.Array:
    q, k = project(x, own["query"]), project(x, own["key"])
    v = project(x, own["value"]) if v is None else v
    scores = jnp.einsum("bthe,bshe->bhts", q, k) / np.sqrt(q.shape[-1])
    seen = np.tril(np.ones((x.shape[1], x.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    y = jnp.einsum("bhts,bshe->bthe", weights, v)
    return jnp.einsum("bthe,hed->btd", y, own["output"]["kernel"])


def ffn(x: jax.Array, own: Params) -> jax.Array:
    return jax.nn.relu(x @ own["in"]["kernel"]) @ own["out"]["kernel"]


SUBLAYERS = {"mixer": attention, "ffn": ffn}


def defined(layers: Layers, params: Params, has_final_norm: bool = True) -> jax.Array:
    """Logits of a model whose layers are `layers(embeddings, parameters of each layer)`."""
    count = len(jax.tree.leaves(params["stack"]["groups"])[0])
    x = params["embedding"][TOKENS]
    x = layers(x, [of_layer(params, layer) for layer in range(count)])
    x = normed(x, params["final_norm"]) if has_final_norm else x
    return x @ params["embedding"].T


def assert_defined(model: LanguageModel, layers: Layers, has_final_norm: bool = True) -> None:
    """Outputs and all gradients are those of the equations, for random parameters."""
    params = parameters(model, spread=0.3)
    target = np.random.default_rng(2).normal(size=(*TOKENS.shape, VOCAB))

    def loss(of_params: Callable[[Params], jax.Array], params: Params) -> tuple:
        found = of_params(params)
        return jnp.sum(found * target), found

    def gradients(of_params: Callable[[Params], jax.Array]) -> tuple:
        run = jax.value_and_grad(lambda params: loss(of_params, params), has_aux=True)
        return jax.jit(run)(params)

    (_, found), ours = gradients(lambda params: model.apply({"params": params}, TOKENS))
    (_, expected), theirs = gradients(lambda params: defined(layers, params, has_final_norm))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10),
        ours,
        theirs,
    )
