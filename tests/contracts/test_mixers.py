"""What every registered mixer must do, in float64. A mixer is found through the registry, its
definition in `cases`."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.cases import CASES, D_MODEL
from contracts.definition import Case
from flax.core import meta

from jaxformer.model.dims import Dims, InitConfig
from jaxformer.model.mixers import MIXERS, Cache, Mixer, build_mixer

# Longer than a window with its sinks, shorter than two, and odd: no chunk or block divides it.
LENGTH = 11
DIMS = Dims(D_MODEL, num_layers=2, init=InitConfig(std="fan_in", output="plain"), dtype="float64")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def build(case: Case, dims: Dims = DIMS) -> Mixer:
    return build_mixer(case.config, dims, case.scheme, parent=None)


def one_document(length: int, batch: int = 2) -> dict:
    """Positions and segments of rows that hold one document each."""
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    return {"positions": positions, "segment_ids": jnp.ones((batch, length), jnp.int32)}


@functools.cache
def setup(case: Case, length: int = LENGTH) -> tuple[Mixer, dict, jax.Array]:
    """The mixer, parameters all away from their trivial start, and an input [2, length, d]."""
    mixer = build(case)
    x = jax.random.normal(jax.random.key(1), (2, length, D_MODEL))
    init = jax.jit(mixer.init)
    params = meta.unbox(init(jax.random.key(0), x, **one_document(length))["params"])
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return mixer, jax.tree.unflatten(tree, moved), x


@functools.cache
def applied(mixer: Mixer) -> Callable[..., jax.Array]:
    """(params, x, layout) → y, compiled once for each shape in all tests."""
    return jax.jit(lambda params, x, layout: mixer.apply({"params": params}, x, **layout)[0])


@functools.cache
def continued(mixer: Mixer) -> Callable[..., tuple[jax.Array, Cache]]:
    """(params, x, layout, cache) → (y, cache)."""
    return jax.jit(
        lambda params, x, layout, cache: mixer.apply({"params": params}, x, **layout, cache=cache)
    )


def run(mixer: Mixer, params: dict, x: jax.Array, layout: dict | None = None) -> jax.Array:
    layout = one_document(x.shape[1], x.shape[0]) if layout is None else layout
    return applied(mixer)(params, x, layout)


def assert_close(actual: jax.Array, expected: jax.Array, relative: float = 1e-10) -> None:
    """Within `relative` of the largest expected entry: entries near zero carry its rounding."""
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=relative * float(jnp.max(jnp.abs(expected)))
    )


def test_every_registered_mixer_has_a_case() -> None:
    registered = {config.model_fields["kind"].default for config in MIXERS}
    assert registered == {case.config.kind for case in CASES.values()}


def test_a_token_leaves_outputs_before_it_bit_unchanged(case: Case) -> None:
    mixer, params, x = setup(case)
    before = run(mixer, params, x)
    for t in (1, 5, LENGTH - 1):
        after = run(mixer, params, x.at[:, t].add(3.0))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert jnp.abs(after[:, t] - before[:, t]).max() > 1e-3


def test_outputs_and_gradients_are_those_of_the_definition(case: Case) -> None:
    mixer, params, x = setup(case, length=6)
    layout = one_document(6)
    weights = jax.random.normal(jax.random.key(3), x.shape)

    def ours(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, _ = mixer.apply({"params": params}, x, **layout)
        return jnp.sum(y * weights), y

    def defined(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jnp.stack([case.definition(params, row, case.config, case.scheme) for row in x])
        return jnp.sum(y * weights), y

    (_, y), gradients = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(params, x)
    (_, expected_y), expected = jax.jit(jax.value_and_grad(defined, (0, 1), has_aux=True))(
        params, x
    )
    assert_close(y, expected_y)
    jax.tree.map(assert_close, gradients, expected)


@pytest.mark.parametrize("pieces", [(4, 7), (1, 9, 1), (1,) * LENGTH], ids=str)
def test_whole_equals_split_with_the_cache_handed_over(case: Case, pieces: tuple) -> None:
    mixer, params, x = setup(case)
    layout = {"positions": one_document(LENGTH)["positions"], "segment_ids": documents()}
    whole = run(mixer, params, x, layout)
    cache, start = mixer.init_cache(2, LENGTH, jnp.float64), 0
    for length in pieces:
        part = slice(start, start + length)
        piece = {name: array[:, part] for name, array in layout.items()}
        y, cache = continued(mixer)(params, x[:, part], piece, cache)
        assert_close(y, whole[:, part])
        start += length


def test_rows_of_several_chunks_equal_their_pieces(case: Case) -> None:
    """131 tokens are two chunks of 64 and a rest; documents end inside chunks and at their ends."""
    mixer, params, x = setup(case, length=131)
    segment_ids = jnp.array([[1] * 64 + [2] * 67, [1] * 30 + [2] * 100 + [3]], jnp.int32)
    positions = one_document(131)["positions"]
    layout = {"positions": positions, "segment_ids": segment_ids}
    whole = run(mixer, params, x, layout)
    cache, parts = mixer.init_cache(2, 131, jnp.float64), []
    for part in (slice(0, 50), slice(50, 131)):
        piece = {name: array[:, part] for name, array in layout.items()}
        y, cache = continued(mixer)(params, x[:, part], piece, cache)
        parts.append(y)
    assert_close(jnp.concatenate(parts, axis=1), whole)


def documents() -> jax.Array:
    """Rows of 11 tokens: documents of 5, 1, 3 and padding; and of 2, 9."""
    return jnp.array([[1] * 5 + [2] + [3] * 3 + [0] * 2, [1] * 2 + [2] * 9], jnp.int32)


def test_packed_documents_equal_each_document_alone(case: Case) -> None:
    mixer, params, x = setup(case)
    segment_ids = documents()
    positions = np.concatenate([[*range(5), 0, *range(3), *range(2)], [*range(2), *range(9)]])
    layout = {"positions": jnp.asarray(positions.reshape(2, LENGTH)), "segment_ids": segment_ids}
    packed = run(mixer, params, x, layout)
    for row in range(2):
        for document in range(1, int(segment_ids[row].max()) + 1):
            own = np.flatnonzero(segment_ids[row] == document)
            alone = run(mixer, params, x[row : row + 1, own])
            assert_close(packed[row, own], alone[0])


def test_a_padded_row_is_finite_with_finite_gradients(case: Case) -> None:
    mixer, params, x = setup(case)
    layout = one_document(LENGTH)
    layout["segment_ids"] *= 0
    y, gradient = jax.value_and_grad(lambda x: jnp.sum(run(mixer, params, x, layout) ** 2))(x)
    assert jnp.isfinite(y) and jnp.isfinite(gradient).all()


def test_bfloat16_is_near_float64_and_finite_at_extremes(case: Case) -> None:
    mixer, params, x = setup(case)
    exact = run(mixer, params, x)
    half = build(case, Dims(D_MODEL, 2, DIMS.init, dtype="bfloat16"))
    y = run(half, params, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    # bfloat16 has 8 bits: 2⁻⁸ a rounding, a handful of roundings from input to output.
    assert_close(y.astype(jnp.float64), exact, relative=8 * 2**-8)

    def extreme(params: dict) -> jax.Array:
        return jnp.sum(run(half, params, 1e4 * x.astype(jnp.bfloat16)).astype(jnp.float32))

    value, gradients = jax.value_and_grad(extreme)(params)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_cache_bytes_are_those_of_the_cache(case: Case) -> None:
    mixer = build(case)
    for length in (1, 7, 64):
        cache = jax.eval_shape(lambda n=length: mixer.init_cache(3, n, jnp.float64))
        per_sequence = [leaf for leaf in jax.tree.leaves(cache) if leaf.ndim]
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in per_sequence)
        assert total == 3 * mixer.cache_bytes(length)


def test_flops_agree_with_the_compiler(case: Case) -> None:
    """At a width where matrix products dominate, and a length where block edges are small."""
    # Of a loop the compiler counts one turn: a mixer of steps is asked about one, in many rows.
    rows, length = (1024, 1) if MIXERS[type(case.config)].form == "step" else (1, 1024)
    dims = Dims(256, 2, DIMS.init, dtype="float32")
    mixer = build(case._replace(config=case.wide or case.config), dims)
    x = jax.ShapeDtypeStruct((rows, length, 256), jnp.float32)
    layout = one_document(length, batch=rows)
    params = jax.eval_shape(lambda: mixer.init(jax.random.key(0), jnp.zeros(x.shape), **layout))
    compiled = jax.jit(lambda p, x: mixer.apply(p, x, **layout)[0]).lower(params, x).compile()
    measured = compiled.cost_analysis()["flops"] / (rows * length)
    assert mixer.flops(length) == pytest.approx(measured, rel=0.15)
