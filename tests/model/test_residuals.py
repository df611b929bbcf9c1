"""Residuals: each is its equations, and some of them are the plain one at the start."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from pydantic import ValidationError

from jaxformer.model.accounting import abstract_parameters, count_parameters, flops_per_token
from jaxformer.model.config import ModelConfig
from jaxformer.model.depth.stack import separate_layers
from jaxformer.model.parameter_paths import by_path, from_paths
from jaxformer.model.residuals import RESIDUALS
from jaxformer.ops.doubly_stochastic import permutations
from jaxformer.parallel.rules import logical_axes
from jaxformer.train.optimizer import decay_mask
from tests.model.structure import (
    EPS,
    LENGTH,
    MODEL,
    SUBLAYERS,
    TOKENS,
    VOCAB,
    WIDTH,
    Params,
    assert_defined,
    attention,
    ffn,
    logits,
    model_of,
    normed,
    parameters,
    project,
)

DEPTH = MODEL["num_layers"]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def sublayer(own: Params, name: str, x: jax.Array) -> jax.Array:
    return SUBLAYERS[name](normed(x, own[f"{name}_norm"]), own[name])


def each_sublayer(each: list[Params]) -> Iterator[tuple[Params, str]]:
    return ((own, name) for own in each for name in SUBLAYERS)


def plain(x: jax.Array, each: list[Params]) -> jax.Array:
    for own, name in each_sublayer(each):
        x = x + sublayer(own, name, x)
    return x


def rezero(x: jax.Array, each: list[Params]) -> jax.Array:
    for own, name in each_sublayer(each):
        x = x + own["gain"]["weight"] * sublayer(own, name, x)
    return x


def layer_scale(x: jax.Array, each: list[Params]) -> jax.Array:
    for own, name in each_sublayer(each):
        x = x + own[f"{name}_scale"]["weight"] * sublayer(own, name, x)
    return x


def parallel(x: jax.Array, each: list[Params]) -> jax.Array:
    for own in each:
        read = normed(x, own["mixer_norm"])
        x = x + attention(read, own["mixer"]) + ffn(read, own["ffn"])
    return x


def value_residual(x: jax.Array, each: list[Params]) -> jax.Array:
    first = None
    for own in each:
        read, weights = normed(x, own["mixer_norm"]), own["mixer"]["value_weights"]
        v = project(read, own["mixer"]["value"])
        mixed = v if first is None else weights[0] * v + weights[1] * first
        first = v if first is None else first
        x = x + attention(read, own["mixer"], mixed)
        x = x + sublayer(own, "ffn", x)
    return x


def copies(x: jax.Array, n: int) -> list[jax.Array]:
    return [x] * n


def streams(connect: Callable[..., tuple], n: int) -> Callable:
    """X_i ← Σ_j mix_ij X_j + write_i f(Σ_j read_j X_j), every weight [batch, length]."""

    def layers(x: jax.Array, each: list[Params]) -> jax.Array:
        xs = copies(x, n)
        for own, name in each_sublayer(each):
            read, mix, write = connect(own[f"{name}_connection"], jnp.stack(xs, axis=2))
            h = sum(read[..., j, None] * xs[j] for j in range(n))
            y = sublayer(own, name, h)
            xs = [
                sum(mix[..., i, j, None] * xs[j] for j in range(n)) + write[..., i, None] * y
                for i in range(n)
            ]
        return sum(xs) / n

    return layers


def static(own: Params, x: jax.Array) -> tuple:
    return own["read"], own["mix"].T, own["write"]


def dynamic(own: Params, x: jax.Array) -> tuple:
    """x [batch, length, n, d_model]."""
    normal = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPS)
    alpha, beta = own["scales"]
    kernel = own["dynamic"]
    read = own["read"] + alpha * jnp.tanh(normal @ kernel[:, 0])
    write = own["write"] + beta * jnp.tanh(normal @ kernel[:, 1])
    mix = own["mix"] + alpha * jnp.tanh(normal @ kernel[:, 2:])
    return read, jnp.swapaxes(mix, -1, -2), write


ITERATIONS = 4  # fewer than by default, as their gradient takes long to compile


def manifold(res: str) -> Callable[..., tuple]:
    def connect(own: Params, x: jax.Array) -> tuple:
        n = x.shape[2]
        whole = x.reshape(*x.shape[:2], -1)
        whole = whole / jnp.sqrt(jnp.mean(whole * whole, axis=-1, keepdims=True) + EPS)

        def found(name: str, shape: tuple[int, ...]) -> jax.Array:
            kernel = own[f"{name}_kernel"].reshape(whole.shape[-1], -1)
            made = (own[f"{name}_scale"] * (whole @ kernel)).reshape(*x.shape[:2], *shape)
            return made + own[f"{name}_bias"]

        read = 1 / (1 + jnp.exp(-found("pre", (n,))))
        write = 2 / (1 + jnp.exp(-found("post", (n,))))
        if res == "identity":
            return read, jnp.eye(n), write
        if res == "permutations":
            mix = jnp.exp(found("res", (math.factorial(n),)))
            mix = mix / jnp.sum(mix, axis=-1, keepdims=True)
            mix = sum(mix[..., k, None, None] * p for k, p in enumerate(permutations(n)))
            return read, mix, write
        mix = jnp.exp(found("res", (n, n)))
        for _ in range(ITERATIONS):
            mix = mix / jnp.sum(mix, axis=-2, keepdims=True)
            mix = mix / jnp.sum(mix, axis=-1, keepdims=True)
        return read, mix, write

    return connect


def attended(query: jax.Array, sources: list[jax.Array]) -> jax.Array:
    keys = [v / jnp.sqrt(jnp.mean(v * v, axis=-1, keepdims=True) + EPS) for v in sources]
    weights = jax.nn.softmax(jnp.stack([key @ query for key in keys]), axis=0)
    return sum(weight[..., None] * v for weight, v in zip(weights, sources, strict=True))


def attention_residuals(last_query: jax.Array, block: int) -> Callable:
    """With the outputs of `block` sub-layers summed."""

    def layers(x: jax.Array, each: list[Params]) -> jax.Array:
        sources = [x]
        for number, (own, name) in enumerate(each_sublayer(each)):
            h = attended(own[f"{name}_query"]["weight"], sources)
            y = sublayer(own, name, h)
            if number % block == 0:
                sources.append(y)
            else:
                sources[-1] = sources[-1] + y
        return attended(last_query, sources)

    return layers


EQUATIONS = {
    "plain": ({"kind": "plain"}, plain),
    "rezero": ({"kind": "rezero"}, rezero),
    "layer_scale": ({"kind": "layer_scale"}, layer_scale),
    "parallel": ({"kind": "parallel"}, parallel),
    "value_residual": ({"kind": "value_residual"}, value_residual),
    "static": (
        {"kind": "hyper_connections", "streams": 3, "dynamic": False},
        streams(static, 3),
    ),
    "dynamic": ({"kind": "hyper_connections", "streams": 2}, streams(dynamic, 2)),
    **{
        res: (
            {"kind": "mhc", "streams": 3, "res": res, "iterations": ITERATIONS},
            streams(manifold(res), 3),
        )
        for res in ("sinkhorn", "permutations", "identity")
    },
}


@pytest.mark.parametrize(("residual", "layers"), EQUATIONS.values(), ids=EQUATIONS)
def test_a_residual_is_its_equations(residual: dict, layers: Callable) -> None:
    """Outputs and gradients, with layers scanned."""
    assert_defined(model_of(residual=residual), layers)


@pytest.mark.parametrize(("block_layers", "block"), [(None, 1), (3, 6)])
def test_attention_residuals_are_their_equations(block_layers: int | None, block: int) -> None:
    model = model_of(residual={"kind": "attention_residuals", "block_layers": block_layers})
    params = parameters(model, spread=0.3)
    target = np.random.default_rng(2).normal(size=(*TOKENS.shape, VOCAB))

    def expected(params: Params) -> jax.Array:
        groups = params["stack"]["groups"]["layer_0"]
        each = [jax.tree.map(lambda leaf, at=at: leaf[at], groups) for at in range(DEPTH)]
        layers = attention_residuals(params["stack"]["last_query"]["weight"], block)
        x = normed(layers(params["embedding"][TOKENS], each), params["final_norm"])
        return x @ params["embedding"].T

    def measured(of_params: Callable) -> tuple:
        run = jax.value_and_grad(lambda params: jnp.sum(of_params(params) * target))
        return jax.jit(run)(params)

    ours = measured(lambda params: model.apply({"params": params}, TOKENS))
    for one, other in zip(*map(jax.tree.leaves, (ours, measured(expected))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def every_kind() -> list[str]:
    return [config.model_fields["kind"].default for config in RESIDUALS]


def test_every_residual_is_tested() -> None:
    tested = {residual["kind"] for residual, _ in EQUATIONS.values()}
    assert tested | {"attention_residuals"} == set(every_kind())


def with_parameters_of(plain: Params, model_params: Params) -> Params:
    """The parameters of `plain`, and what else the model has."""
    ours = by_path(model_params)
    return {path: by_path(plain).get(path, leaf) for path, leaf in ours.items()}


PLAIN_AT_THE_START = {
    "gain 1": ({"kind": "rezero"}, {"gain/weight": 1.0}, 0),
    "scale 1": ({"kind": "layer_scale", "start": 1.0}, {}, 0),
    "two streams": ({"kind": "hyper_connections", "streams": 2}, {}, 0),
    "two static streams": ({"kind": "hyper_connections", "streams": 2, "dynamic": False}, {}, 0),
    "four streams": ({"kind": "hyper_connections", "streams": 4}, {}, 1e-12),
    # What is float32 at the start, and sums to 1 but for its rounding.
    "manifold": ({"kind": "mhc"}, {}, 1e-5),
    "permutations": ({"kind": "mhc", "res": "permutations"}, {}, 1e-5),
}


@pytest.mark.parametrize(
    ("residual", "changes", "tolerance"), PLAIN_AT_THE_START.values(), ids=PLAIN_AT_THE_START
)
def test_a_residual_starts_as_the_plain_one(
    residual: dict, changes: dict, tolerance: float
) -> None:
    model, plain_model = model_of(residual=residual), model_of()
    base = parameters(plain_model)
    leaves = with_parameters_of(base, parameters(model))
    for end, value in changes.items():
        leaves |= {
            path: np.full_like(leaf, value) for path, leaf in leaves.items() if path.endswith(end)
        }
    found, expected = logits(model, from_paths(leaves)), logits(plain_model, base)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_rezero_starts_as_no_layers_at_all() -> None:
    model = model_of(residual={"kind": "rezero"})
    params = parameters(model)
    x = normed(params["embedding"][TOKENS], params["final_norm"])
    expected = x @ params["embedding"].T
    np.testing.assert_allclose(logits(model, params), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("block_layers", [None, 2])
def test_attention_residuals_whose_queries_are_zero_are_pre_norm(block_layers: int | None) -> None:
    """RMSNorm takes the mean of what was attended to for its sum, where ε is 0."""
    norm = {"eps": 1e-30}
    residual = {"kind": "attention_residuals", "block_layers": block_layers}
    model, plain_model = model_of(residual=residual, norm=norm), model_of(norm=norm)
    base = parameters(plain_model)
    found = logits(model, from_paths(with_parameters_of(base, parameters(model))))
    np.testing.assert_allclose(found, logits(plain_model, base), rtol=0, atol=1e-13)


@pytest.mark.parametrize("res", ["sinkhorn", "permutations"])
def test_streams_mixed_by_doubly_stochastic_matrices_are_pre_norm(res: str) -> None:
    """Where sub-layers read the mean of the streams, and write into each the same."""
    model, plain_model = model_of(residual={"kind": "mhc", "streams": 3, "res": res}), model_of()
    base, random = parameters(plain_model), np.random.default_rng(0)
    leaves = with_parameters_of(base, parameters(model))
    for path, leaf in leaves.items():
        if path.endswith("pre_bias"):
            leaves[path] = np.full_like(leaf, -math.log(2))  # σ of which is a third
        elif path.endswith("res_bias"):
            leaves[path] = random.normal(size=leaf.shape)
    found = logits(model, from_paths(leaves))
    np.testing.assert_allclose(found, logits(plain_model, base), rtol=0, atol=1e-12)


CASES = {
    **{kind: {"residual": {"kind": kind}} for kind in every_kind()},
    "blocks": {"residual": {"kind": "attention_residuals", "block_layers": 2}},
    "lns": {"norm": {"placement": "lns"}},
    "mixed": {"norm": {"placement": "mixed", "post_share": 0.5}},
    "sub": {"norm": {"placement": "sub"}},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_cached_pieces_and_other_layouts_are_the_whole(options: dict) -> None:
    """With a pattern that does not divide the layers, and activations computed again."""
    pattern = [{}, {"ffn": {"kind": "gelu", "d_hidden": 4}}]
    model = model_of(**options, num_layers=5, pattern=pattern)
    params = parameters(model, spread=0.3)
    whole = logits(model, params)
    unrolled = model.clone(layout="unrolled", remat="full")
    np.testing.assert_allclose(logits(unrolled, params), whole, rtol=0, atol=1e-12)

    decoder = model.clone(layout="separate")
    variables, cache = {"params": separate_layers(params)}, decoder.init_cache(2, LENGTH)
    step = jax.jit(partial(decoder.apply, method="predict"))
    positions = np.broadcast_to(np.arange(LENGTH), TOKENS.shape)
    pieces = []
    for begin, end in ((0, 3), (3, 4), (4, LENGTH)):
        rows = (TOKENS[:, begin:end], positions[:, begin:end], np.ones((2, end - begin), np.int32))
        found, cache = step(variables, *rows, None, cache)
        pieces.append(found)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_stream_keeps_its_type(options: dict) -> None:
    """Layers are scanned, so that what they pass on may not change."""
    model = model_of(**options).clone(dtype=jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def hidden(params: Params) -> jax.Array:
        return model.apply({"params": params}, TOKENS, method="hidden")[0]

    assert jax.eval_shape(hidden, params).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "options",
    [
        {"depth": {"kind": "mixture", "capacity": 1.0}},
        {"depth": {"kind": "loop", "turns": 2, "before": 1, "after": 1}},
        {"depth": {"kind": "recursion", "turns": 2}},
        {"depth": {"kind": "exits"}},
        {"further": {"kind": "modules", "count": 1}},
    ],
    ids=str,
)
def test_streams_pass_layers_of_any_depth(options: dict) -> None:
    """At the start, they are as the plain residual's."""
    model = model_of(residual={"kind": "hyper_connections", "streams": 2}, **options)
    plain_model = model_of(**options)
    base = parameters(plain_model)
    found = logits(model, from_paths(with_parameters_of(base, parameters(model))))
    np.testing.assert_allclose(found, logits(plain_model, base), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("residual", "per_sublayer", "flops"),
    [
        ({"kind": "layer_scale"}, WIDTH, 0),
        ({"kind": "hyper_connections", "streams": 3, "dynamic": False}, 15, 15 * WIDTH),
        (
            {"kind": "hyper_connections", "streams": 3},
            15 + 2 + 5 * WIDTH,
            (15 + 3 * 5) * WIDTH,
        ),
        (
            {"kind": "mhc", "streams": 3},
            3 + 15 + 15 * 3 * WIDTH,
            (15 + 3 * 15) * WIDTH,
        ),
    ],
)
def test_parameters_and_flops_are_counted(residual: dict, per_sublayer: int, flops: int) -> None:
    model, plain_model = model_of(residual=residual), model_of()
    sublayers = 2 * DEPTH
    found = count_parameters(model) - count_parameters(plain_model)
    assert found == sublayers * per_sublayer
    costs = flops_per_token(model, LENGTH) - flops_per_token(plain_model, LENGTH)
    assert costs == pytest.approx(2 * sublayers * flops)


def test_places_that_are_attended_to_are_counted() -> None:
    plain_flops = flops_per_token(model_of(), LENGTH)
    for block_layers, places in ((None, 1 + 2 * DEPTH), (2, 1 + 2), (3, 1 + 2)):
        model = model_of(residual={"kind": "attention_residuals", "block_layers": block_layers})
        attended_to = 4 * places * WIDTH * (2 * DEPTH + 1)
        assert flops_per_token(model, LENGTH) - plain_flops == pytest.approx(attended_to)


def test_only_weights_that_multiply_features_decay() -> None:
    model = model_of(residual={"kind": "mhc"})
    axes = logical_axes(abstract_parameters(model))
    decays = by_path(jax.tree.map(bool, decay_mask(axes)))
    layer = "stack/groups/layer_0/mixer_connection/"
    found = {path.removeprefix(layer): on for path, on in decays.items() if layer in path}
    kernels = {path for path, on in found.items() if on}
    assert kernels == {"pre_kernel", "post_kernel", "res_kernel"} and len(found) == 9
    assert by_path(axes)[f"{layer}res_bias"] == PartitionSpec("layers", "stream", "into_stream")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"residual": {"kind": "mhc"}, "norm": {"placement": "post"}},
            "norm.placement is post, .* residual mhc has more than one; allowed: none, pre, sand",
        ),
        (
            {"residual": {"kind": "mhc", "res": "permutations", "streams": 6}},
            "streams is 6 with res permutations, which has a weight for each of 720",
        ),
        (
            {"residual": {"kind": "attention_residuals"}, "depth": {"kind": "exits"}},
            "depth is exits, but residual attention_residuals .* give depth fixed",
        ),
        (
            {"residual": {"kind": "attention_residuals"}, "pattern": [{}, {"ffn": "none"}]},
            "attention_residuals counts sub-layers, but some layers have a mixer or an FFN that",
        ),
        (
            {
                "residual": {"kind": "value_residual"},
                "pattern": [{}, {"mixer": {"kind": "min_gru"}}],
            },
            "so they have to be attention, .* they are attention, min_gru",
        ),
        (
            {"residual": {"kind": "parallel"}, "pattern": [{"mixer_norm": False}]},
            "layer 0 has mixer_norm false, .* residual parallel has other parts there",
        ),
        (
            {"residual": {"kind": "hyper_connections", "streams": 1}},
            "greater than or equal to 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(MODEL | options)
