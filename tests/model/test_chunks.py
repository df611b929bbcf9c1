"""Dynamic chunking: against its definition, written token by token, and the contract of a model."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.products import product_flops
from flax.core import meta
from pydantic import ValidationError

from jaxformer.model.accounting import cache_bytes, flops_per_token, most_flops_per_token
from jaxformer.model.block import Block
from jaxformer.model.config import ModelConfig
from jaxformer.model.depth.stack import separate_layers
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.model.rows import RowInfo
from jaxformer.objectives.requirements import check_any_order
from tests.weights import drawn

VOCAB, LENGTH = 7, 11
TOKENS = np.random.default_rng(3).integers(0, VOCAB, (2, LENGTH))
DOCUMENTS = np.int32([[1] * 6 + [2] + [3] * 4, [0] * 2 + [1] * 5 + [2] * 3 + [0]])
POSITIONS = np.int32([[*range(6), 0, *range(4)], [0, 0, *range(5), *range(3), 0]])
ONE = np.ones((2, LENGTH), np.int32)
ATTENTION = {"kind": "attention", "num_heads": 2}
MIN_GRU = {"kind": "min_gru"}
CHUNKS = {
    "kind": "chunks",
    "encoder": [{"mixer": MIN_GRU}, {"mixer": ATTENTION, "ffn": {"kind": "relu2", "d_hidden": 8}}],
    "decoder": [{"mixer": MIN_GRU}],
    "ratio": 2.5,
    "share": 1.0,
}
MODEL = {
    "d_model": 8,
    "num_layers": 2,
    "vocab_size": VOCAB,
    "mixer": ATTENTION,
    "ffn": None,
    "pattern": [{}, {"mixer": MIN_GRU}],
    "init": {"std": "fan_in", "output": "plain"},
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def model_of(**options: object) -> LanguageModel:
    config = {**MODEL, "inputs": {**CHUNKS, **options}}
    return build_model(ModelConfig.model_validate(config), dtype=jnp.float64)


@functools.cache
def parameters(model: LanguageModel) -> dict:
    """The router is so drawn that half of the tokens begin chunks."""
    return drawn(model, TOKENS)


@functools.cache
def compiled(model: LanguageModel):
    """(params, tokens, positions, segment_ids, cache) → (x, cache, aux)."""

    def hidden(params, *rows, cache=None):
        return model.apply({"params": params}, *rows, cache=cache, method="hidden")

    return jax.jit(hidden)


def run(model: LanguageModel, tokens=TOKENS, positions=POSITIONS, documents=DOCUMENTS):
    return compiled(model)(parameters(model), tokens, positions, documents)


def objective(x, loss):
    return jnp.sum(x * jnp.cos(jnp.arange(x.size).reshape(x.shape))) + loss


@jax.custom_vjp
def straight_through(c):
    return jnp.ones_like(c)


straight_through.defvjp(lambda c: (jnp.ones_like(c), None), lambda _, d: (d,))


def norm(params: dict, name: str, x: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * params[name]["scale"]


def through(model: LanguageModel, params: dict, part: str, x: jax.Array) -> jax.Array:
    """One document [length, d_model] through the encoder or the decoder."""
    rows = RowInfo(jnp.arange(len(x))[None], jnp.ones((1, len(x)), jnp.int32))
    for index, layer in enumerate(getattr(model.config.inputs, part)):
        block = Block(layer, model.input_part(parent=None).residual, model.dims)
        x = block.apply({"params": params[f"{part}_{index}"]}, x[None], rows)[0][0]
    return x


def encoded(model: LanguageModel, params: dict) -> list[list[tuple]]:
    """Of every row, of every document: the encoder's output [length, d_model], and each p."""
    found = []
    for row, ids in enumerate(DOCUMENTS):
        found.append([])
        for document in sorted(set(ids.tolist()) - {0}):
            x = through(model, params, "encoder", params["embedding"][TOKENS[row, ids == document]])
            x = norm(params, "encoder_norm", x)
            query, key = (x @ params["router"][name]["kernel"] for name in ("query", "key"))
            p = [jnp.ones(())]
            for t in range(1, len(x)):
                norms = jnp.linalg.norm(query[t]) * jnp.linalg.norm(key[t - 1])
                p.append((1 - query[t] @ key[t - 1] / norms) / 2)
            found[-1].append((x, p))
    return found


@functools.cache
def boundaries() -> list[list[list[bool]]]:
    """Of every row, of every document, whether p ≥ ½; whatever `share` is."""
    model = model_of()
    every = jax.jit(functools.partial(encoded, model))(parameters(model))
    return [[[bool(each >= 0.5) for each in p] for _, p in row] for row in every]


def count_boundaries() -> np.ndarray:
    return np.array([sum(map(sum, row)) for row in boundaries()])


def by_definition(model: LanguageModel, params: dict) -> tuple[jax.Array, jax.Array]:
    """What `hidden` gives [batch, length, d_model], zeros for padding, and the ratio loss. Every
    document goes alone, and its chunks are a list of the length that they have."""
    config, outputs, loss = model.config.inputs, [], 0.0
    for ids, row, of_row in zip(DOCUMENTS, encoded(model, params), boundaries(), strict=True):
        room, of_tokens = math.ceil(config.most * LENGTH), []
        for (x, p), b in zip(row, of_row, strict=True):
            newest, begun = [], []
            for t in range(len(x)):
                if b[t] and room > 0:
                    room -= 1
                    begun.append(t)
                newest.append(len(begun) - 1)
            if begun:
                rows = RowInfo(jnp.arange(len(begun))[None], jnp.ones((1, len(begun)), jnp.int32))
                layers, chunks = model.depth(parent=None), x[np.array(begun)][None]
                z = layers.apply({"params": params["stack"]}, chunks, rows)[0][0]
                z = norm(params, "chunk_norm", z)
                smooth = []
                for j, t in enumerate(begun):
                    smooth.append(p[t] * z[j] + ((1 - p[t]) * smooth[-1] if j else 0))
            y = []
            for t in range(len(x)):
                confidence = straight_through(p[t] if b[t] else 1 - p[t])
                of_chunk = confidence * smooth[newest[t]] if begun else 0
                y.append(of_chunk + x[t] @ params["around"]["kernel"])
            of_tokens.append(through(model, params, "decoder", jnp.stack(y)))
        of_tokens = norm(params, "final_norm", jnp.concatenate(of_tokens))
        outputs.append(jnp.zeros((LENGTH, model.dims.d_model)).at[ids != 0].set(of_tokens))
        n, ratio = len(of_tokens), config.ratio
        f, g = sum(map(sum, of_row)) / n, sum(sum(p) for _, p in row) / n
        loss += n * ratio / (ratio - 1) * ((ratio - 1) * f * g + (1 - f) * (1 - g))
    return jnp.stack(outputs), config.weight * loss


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_outputs_loss_and_all_gradients_are_those_of_the_definition(share: float) -> None:
    model = model_of(share=share)
    params = parameters(model)
    real = (DOCUMENTS != 0)[..., None]
    counts = count_boundaries()
    assert (counts > 4).all() and (counts < [11, 8]).all()  # some tokens begin chunks

    def ours(params):
        x, _, aux = model.apply({"params": params}, TOKENS, POSITIONS, DOCUMENTS, method="hidden")
        x = jnp.where(real, x, 0)
        return objective(x, aux.loss), (x, aux)

    def theirs(params):
        x, loss = by_definition(model, params)
        return objective(x, loss), (x, loss)

    (_, (x, aux)), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    (_, (expected, loss)), exact = jax.jit(jax.value_and_grad(theirs, has_aux=True))(params)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-11)
    assert float(aux.loss) == pytest.approx(float(loss), rel=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), gradient, exact)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient["router"]))
    chunks = np.minimum(counts, math.ceil(share * LENGTH))
    assert aux.stats["inputs/chunks"] == chunks.sum()
    assert aux.stats["inputs/overflow"] == (counts - chunks).sum()


def test_no_output_depends_on_later_tokens() -> None:
    model = model_of()
    x = run(model, documents=ONE)[0]
    for t in range(LENGTH):
        others = np.where(np.arange(LENGTH) >= t, (TOKENS + 1) % VOCAB, TOKENS)
        np.testing.assert_array_equal(run(model, others, documents=ONE)[0][:, :t], x[:, :t])


def test_packed_documents_equal_each_document_alone() -> None:
    model = model_of()
    x = run(model)[0]
    for row, ids in enumerate(DOCUMENTS):
        for document in sorted(set(ids.tolist()) - {0}):
            at = np.flatnonzero(ids == document)
            tokens, one = np.zeros((2, 2, LENGTH), np.int32)
            tokens[:, : len(at)], one[:, : len(at)] = TOKENS[row, at], 1
            places = np.broadcast_to(np.arange(LENGTH), (2, LENGTH))
            alone = run(model, tokens, places, one)[0][0, : len(at)]
            np.testing.assert_allclose(x[row, at], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_whole_rows_equal_rows_in_pieces_and_token_by_token(share: float) -> None:
    model = model_of(share=share)
    whole = run(model)[0]
    real = DOCUMENTS != 0
    separate = model.clone(layout="separate")
    for decoder, change in ((model, lambda p: p), (separate, separate_layers)):
        params = change(parameters(model))
        for pieces in ([1] * LENGTH, [4, 7]):
            cache, parts, start = decoder.init_cache(2, LENGTH), [], 0
            for piece in pieces:
                rows = (x[:, start : start + piece] for x in (TOKENS, POSITIONS, DOCUMENTS))
                x, cache, _ = compiled(decoder)(params, *rows, cache=cache)
                parts.append(x)
                start += piece
            x = jnp.concatenate(parts, axis=1)
            np.testing.assert_allclose(x[real], whole[real], rtol=0, atol=1e-11)
        room = np.maximum(math.ceil(share * LENGTH) - count_boundaries(), 0)
        assert cache["carried"]["room"].tolist() == room.tolist()


def test_a_chunk_for_every_token_and_nothing_around_it_are_the_layers_alone() -> None:
    """Queries and keys of opposite directions: p = 1 everywhere."""
    model = model_of(encoder=(), decoder=(), norms=False)
    params = parameters(model)
    first = np.zeros((8, 8))
    first[0, 0] = 1.0
    router = {"query": {"kernel": -first}, "key": {"kernel": first}}
    params |= {
        "router": router,
        "around": {"kernel": np.zeros((8, 8))},
        "embedding": params["embedding"].at[:, 0].set(2.0),
    }
    plain = build_model(ModelConfig.model_validate(MODEL), dtype=jnp.float64)
    rows = (TOKENS, POSITIONS[[0, 0]], DOCUMENTS[[0, 0]])
    x, _, aux = compiled(model)(params, *rows)
    expected, _, _ = compiled(plain)(params, *rows)
    np.testing.assert_array_equal(x, expected)
    assert aux.stats["inputs/chunks"] == aux.stats["inputs/boundary_probability"] == 22


def test_rematerialisation_changes_no_gradient() -> None:
    def gradient(model: LanguageModel) -> dict:
        def total(params):
            x, _, aux = model.apply(
                {"params": params}, TOKENS, POSITIONS, DOCUMENTS, method="hidden"
            )
            return objective(x, aux.loss)

        return jax.jit(jax.grad(total))(parameters(model_of()))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11),
        gradient(model_of().clone(remat="full")),
        gradient(model_of()),
    )


def test_accounts_are_those_of_the_products_and_of_the_cache() -> None:
    """At most as many products as for the most chunks; attention alone has products only."""
    layers = ({"mixer": {**ATTENTION}, "ffn": {"kind": "relu2", "d_hidden": 512}},)
    config = {
        **MODEL,
        "d_model": 256,
        "vocab_size": 128,
        "pattern": [{}],
        "inputs": {**CHUNKS, "encoder": layers, "decoder": layers, "ratio": 4.0, "share": 0.5},
    }
    model = build_model(ModelConfig.model_validate(config), dtype=jnp.float32)
    tokens = jnp.zeros((1, 1024), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    program = jax.make_jaxpr(lambda p: model.apply({"params": p}, tokens))(meta.unbox(params))
    products = product_flops(program.jaxpr) / 1024
    assert products == pytest.approx(most_flops_per_token(model, 1024), rel=0.1)
    assert most_flops_per_token(model, 1024) <= products  # a block of queries meets a few more keys
    outside = most_flops_per_token(model, 1024) - 0.5 * model.depth(parent=None).flops(512)
    expected = outside + 0.25 * model.depth(parent=None).flops(256)
    assert flops_per_token(model, 1024) == pytest.approx(expected, rel=1e-12)

    model = model_of(share=0.4)
    cache = jax.eval_shape(lambda: model.init_cache(3, 10))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert size == 3 * cache_bytes(model, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "greater than 1"),
        ({"share": 0.3}, r"share is 0.3, which leaves no room for 1 / ratio = 0.4"),
        (
            {"decoder": [{"mixer": ATTENTION, "positions": {"kind": "sinusoidal"}}]},
            r"inputs.decoder.0.positions is sinusoidal, which is added to the embeddings",
        ),
        (
            {"encoder": [{"mixer": MIN_GRU, "positions": {"kind": "alibi"}}]},
            "inputs.encoder.0.positions is alibi, which its mixer min_gru does not use",
        ),
        ({"encoder": [{"mixer": {"kind": "attention", "num_heads": 3}}]}, "num_heads"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({**MODEL, "inputs": {**CHUNKS, **options}})


def test_what_needs_every_token_is_refused() -> None:
    config = model_of().config
    with pytest.raises(ValueError, match="chunks the layers do not see every token; allowed"):
        check_any_order("prefix", config)
    exits = config.model_dump() | {"depth": {"kind": "exits"}, "num_layers": 4}
    with pytest.raises(ValueError, match="exits has exits for tokens, but with inputs chunks"):
        ModelConfig.model_validate(exits)
