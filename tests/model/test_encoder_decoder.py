"""Decoders with an encoder, in float64, against their equations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from pydantic import ValidationError

from jaxformer.batch import Pair, Source
from jaxformer.model.accounting import cache_bytes, count_parameters, flops_per_token
from jaxformer.model.config import ModelConfig
from jaxformer.model.dims import Dims, InitConfig, SourceDims
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.model.mixers import build_mixer
from jaxformer.model.mixers.cross_attention import CrossAttentionConfig
from jaxformer.model.positions import NoPositionsConfig
from jaxformer.model.rows import Memory, RowInfo

ATTENTION = {"kind": "attention", "num_heads": 2}
CROSS = {"kind": "cross_attention", "num_heads": 2}
ENCODER = {
    "length": 7,
    "d_model": 8,
    "num_layers": 1,
    "mixer": {"kind": "bidirectional", "mixer": {"kind": "mamba2", "head_dim": 4, "state_size": 4}},
    "ffn": {"kind": "relu", "d_hidden": 12},
    "inputs": {"kind": "shared_tokens"},
    "positions": {"kind": "sinusoidal"},
}
MODEL = {
    "d_model": 8,
    "num_layers": 4,
    "vocab_size": 11,
    "mixer": ATTENTION,
    "ffn": {"kind": "relu", "d_hidden": 12},
    "pattern": [{"ffn": "none"}, {"mixer": CROSS}],
    "positions": {"kind": "relative", "num_buckets": 4, "max_distance": 4},
    "init": {"std": 0.5, "output": "plain"},
    "encoder": ENCODER,
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def model_of(**options: Any) -> LanguageModel:
    return build_model(ModelConfig.model_validate(MODEL | options), dtype=jnp.float64)


@pytest.fixture(scope="module")
def translator() -> tuple[LanguageModel, dict]:
    with jax.enable_x64(True):
        model = model_of()
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.config.example)
        params = meta.unbox(jax.jit(model.init)(jax.random.key(0), zeros)["params"])
        return model, jax.tree.map(lambda x: x.astype(jnp.float64), params)


def test_cross_attention_is_its_equation_over_the_source_of_the_same_pair():
    config = CrossAttentionConfig(num_heads=4, num_kv_heads=2, qkv_bias="no_key", output_bias=True)
    dims = Dims(8, 1, InitConfig(std=0.5), "float64", source=SourceDims(6, 5))
    mixer = build_mixer(config, dims, NoPositionsConfig(), parent=None)
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (2, 4, 8), jnp.float64)
    states = jax.random.normal(keys[1], (2, 5, 6), jnp.float64)
    of_tokens = np.array([[1, 1, 2, 2], [1, 2, 2, 0]])
    of_source = np.array([[1, 2, 2, 2, 0], [1, 1, 1, 2, 2]])
    weights = jax.random.normal(keys[2], x.shape, jnp.float64)
    real = (of_tokens != 0)[..., None]  # padding sees nothing, whatever it gives

    def rows(states: jax.Array) -> RowInfo:
        memory = Memory(states, jnp.asarray(of_source))
        return RowInfo(jnp.zeros_like(of_tokens), jnp.asarray(of_tokens), memory=memory)

    params = meta.unbox(jax.jit(mixer.init)(keys[3], x, rows(states))["params"])
    params = jax.tree.map(lambda p: jax.random.normal(keys[3], p.shape, jnp.float64), params)

    def mixed(params: dict, x: jax.Array, states: jax.Array) -> jax.Array:
        y, _ = mixer.apply({"params": params}, x, rows(states))
        return jnp.sum(jnp.where(real, weights * y, 0))

    def defined(params: dict, x: jax.Array, states: jax.Array) -> jax.Array:
        def project(x: jax.Array, name: str) -> jax.Array:
            part = params[name]
            return jnp.einsum("bld,dhf->blhf", x, part["kernel"]) + part.get("bias", 0)

        q, k, v = project(x, "query"), project(states, "key"), project(states, "value")
        total = 0.0
        for b, t in np.argwhere(np.asarray(of_tokens) != 0):
            seen = np.flatnonzero(of_source[b] == of_tokens[b, t])
            o = []
            for h in range(4):
                logits = k[b, seen, h // 2] @ q[b, t, h] / jnp.sqrt(2.0)  # head_dim 8 / 4
                shares = jnp.exp(logits) / jnp.sum(jnp.exp(logits))
                o.append(shares @ v[b, seen, h // 2])
            y = jnp.einsum("hf,hfd->d", jnp.stack(o), params["output"]["kernel"])
            total += weights[b, t] @ (y + params["output"]["bias"])
        return total

    found = jax.jit(jax.value_and_grad(mixed, (0, 1, 2)))(params, x, states)
    expected = jax.jit(jax.value_and_grad(defined, (0, 1, 2)))(params, x, states)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)


def test_packed_pairs_are_each_pair_alone_and_cached_is_whole(translator: tuple):
    model, params = translator
    random = np.random.default_rng(0)
    tokens, source = random.integers(0, 11, (2, 9)), random.integers(0, 11, (2, 7))
    of_tokens = np.array([[1] * 4 + [2] * 5, [1] * 3 + [2] * 4 + [0] * 2])
    of_source = np.array([[1] * 3 + [2] * 4, [1] * 5 + [2] + [0]])

    def positions(segment_ids: np.ndarray) -> np.ndarray:
        starts = np.diff(segment_ids, prepend=-1, axis=1) != 0
        places = np.arange(segment_ids.shape[1])
        return places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)

    apply = jax.jit(lambda *rows: model.apply({"params": params}, *rows))
    encode = jax.jit(lambda *rows: model.apply({"params": params}, *rows, method="encode")[0])
    step = jax.jit(lambda *rows: model.apply({"params": params}, *rows, method="step"))
    packed = apply(
        Pair(tokens, Source(source, positions(of_source), of_source)),
        positions(of_tokens),
        of_tokens,
    )
    for row, number in ((0, 1), (0, 2), (1, 1), (1, 2)):
        here, there = of_tokens[row] == number, of_source[row] == number
        # Filled up with padding, which must leave no trace, so that one program serves all.
        own, asked = np.zeros((1, 9), int), np.zeros((1, 7), int)
        own[0, : here.sum()], asked[0, : there.sum()] = tokens[row, here], source[row, there]
        ids, of_asked = own * 0, asked * 0
        ids[0, : here.sum()], of_asked[0, : there.sum()] = 1, 1
        alone = apply(Pair(own, Source(asked, positions(of_asked), of_asked)), positions(ids), ids)
        expected = alone[0, : here.sum()]
        np.testing.assert_allclose(packed[row, here], expected, atol=1e-12)

        memory, cache = encode(asked, positions(of_asked), of_asked), model.init_cache(1, 9)
        for place in range(here.sum()):
            token, one = own[:, place : place + 1], np.ones((1, 1), int)
            given = Pair(token, memory) if place == 0 else token
            logits, cache = step(given, place * one, one, cache)
            np.testing.assert_allclose(logits[0], expected[place], atol=1e-12)


def test_costs_are_counted_with_the_encoder():
    model = model_of()
    # Per layer of attention 4 matrices of 8 × 8, per FFN 2 of 8 × 12, a norm's 8 per sub-layer and
    # at both ends; the table 11 × 8, and 4 biases for 2 heads; the encoder's mixer by itself.
    mixer = build_mixer(
        model.config.encoder.mixer, model.encoder_part(model.config.encoder).dims, None, parent=None
    )
    decoder = 2 * (2 * 4 * 64 + 2 * 96) + 6 * 8 + 8 + 88 + 4 * 2
    encoder = count_parameters(model) - decoder
    assert (
        encoder
        == sum(
            leaf.size
            for leaf in jax.tree.leaves(
                jax.eval_shape(
                    mixer.init,
                    jax.random.key(0),
                    jnp.zeros((1, 2, 8)),
                    RowInfo(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), jnp.int32)),
                )
            )
        )
        + 2 * 96
        + 3 * 8
    )
    # Keys and values of 9 tokens with their places, and of 7 of the source, in 2 layers each.
    assert cache_bytes(model, 9) == 2 * (9 * (2 * 8 * 8 + 12) + 4) + 2 * 7 * (2 * 8 * 8 + 4)
    of_encoder = (mixer.flops(7) + 4 * 96) * 7 / 9
    pairs = 4 * 8 * (np.mean(range(1, 10)) + 7)
    of_decoder = 2 * (2 * (4 + 2) * 64 + 4 * 64 * 7 / 9 + 4 * 96 + pairs) + 2 * 88
    assert flops_per_token(model, 9) == pytest.approx(of_encoder + of_decoder, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": None}, "mixer of layer 1 reads a source, but encoder is null"),
        ({"pattern": [{}]}, "encoder is given, but no layer reads it"),
        (
            {"encoder": ENCODER | {"pattern": [{"mixer": CROSS}]}},
            "layer 0 of the encoder has the mixer cross_attention, which reads what an encoder",
        ),
        (
            {"encoder": ENCODER | {"d_model": 16}},
            "encoder.d_model is 16 and d_model 8; make them the same",
        ),
        (
            {"encoder": ENCODER | {"positions": {"kind": "learned", "max_length": 4}}},
            "length is 7, but positions have max_length 4",
        ),
        (
            {"pattern": [{"mixer": CROSS | {"num_heads": 3}}]},
            "d_model 8 is not divisible by num_heads 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        model_of(**options)
