"""Tokens to experts and back, and every form of the grouped product, against loops."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.products import product_flops

from jaxformer.ops import routing
from jaxformer.ops.routing import collect, combine, grouped_products, send, sort_by_expert

COUNTS = ([3, 0, 5, 1], [0, 0, 0, 11], [0, 0, 0, 0], [2, 2, 2, 2])  # of 11 rows


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def loop(x: jax.Array, matrices: jax.Array, counts: list[int]) -> jax.Array:
    """`grouped_product`, a row at a time."""
    experts = [expert for expert, count in enumerate(counts) for _ in range(count)]
    rows = [x[row] @ matrices[expert] for row, expert in enumerate(experts)]
    rows += [jnp.zeros(matrices.shape[2])] * (len(x) - len(rows))
    return jnp.stack(rows)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("form", ["blocks", "ragged"])
def test_every_form_of_the_grouped_product_is_the_loop_over_rows(
    monkeypatch: pytest.MonkeyPatch, form: str, counts: list[int]
) -> None:
    """With all gradients; in blocks of up to three rows, of which the last ones overlap."""
    if form == "ragged":
        monkeypatch.setattr(routing, "product_of_blocks", routing.ragged_product)
        monkeypatch.setattr(routing, "outer_product_of_blocks", routing.ragged_outer_product)
    monkeypatch.setattr(routing, "block_sizes", lambda rows, experts: (1, 2, 3))
    given = normal(0, 11, 6), normal(1, 4, 6, 5), normal(2, 4, 6, 3)
    weights, used = (normal(3, 11, 5), normal(4, 11, 3)), sum(counts)

    def of(function: Callable) -> tuple:
        def loss(x: jax.Array, *matrices: jax.Array) -> jax.Array:
            made = zip(weights, function(x, matrices), strict=True)
            return sum(jnp.sum((weight * y)[:used]) for weight, y in made)

        value, (of_x, *of_matrices) = jax.value_and_grad(loss, (0, 1, 2))(*given)
        return value, of_x[:used], of_matrices

    expected = of(lambda x, matrices: [loop(x, each, counts) for each in matrices])
    found = of(lambda x, matrices: grouped_products(x, matrices, jnp.asarray(counts)))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("form", [routing.product_of_blocks, routing.ragged_product])
def test_a_product_may_be_added_to_another(
    form: Callable, transposed: bool, counts: list[int]
) -> None:
    x, matrices, plus = normal(0, 11, 6), normal(1, 4, 6, 5), normal(2, 11, 5)
    given = matrices.swapaxes(1, 2) if transposed else matrices
    found = form(transposed, x, given, jnp.asarray(counts), plus)
    used = sum(counts)
    expected = (loop(x, matrices, counts) + plus)[:used]
    np.testing.assert_allclose(found[:used], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "experts", "spare"), [(8192, 16, 1 / 8), (640, 16, 1 / 4), (7, 3, None), (1, 64, None)]
)
def test_blocks_multiply_few_rows_more_than_experts_have(
    rows: int, experts: int, spare: float | None
) -> None:
    sizes = routing.block_sizes(rows, experts)
    assert all(1 <= size <= min(rows, 512) for size in sizes)
    assert sizes == tuple(sizes[0] * units for units in range(1, len(sizes) + 1))
    if spare is not None:  # every expert's last unit is nearly empty
        assert experts * sizes[0] <= spare * rows
    x, matrices = jnp.zeros((rows, 3)), jnp.zeros((experts, 3, 5))
    counts = jnp.zeros(experts, int)
    smallest = 2 * sizes[0] * 3 * 5  # `product_flops` counts the cheapest branch, once
    product = jax.make_jaxpr(partial(routing.product_of_blocks, False))
    assert product_flops(product(x, matrices, counts).jaxpr) == smallest
    outer = jax.make_jaxpr(routing.outer_product_of_blocks)
    assert product_flops(outer(x, jnp.zeros((rows, 5)), counts).jaxpr) == smallest


def test_a_block_reads_no_expert_without_rows() -> None:
    """Decoding one token reads the matrices of the experts it chose, and no other."""
    matrices = jnp.full((64, 3, 3), jnp.nan).at[5].set(jnp.eye(3))
    counts = jnp.zeros(64, int).at[5].set(1)
    visits = routing._visits(counts, 1, 1)
    assert int(visits.total) == 1
    (product,) = grouped_products(jnp.ones((1, 3)), [matrices], counts)
    np.testing.assert_array_equal(product, 1.0)


def test_tokens_reach_their_experts_in_order_and_come_back() -> None:
    """Three tokens choose two of four experts each; 4 is nobody."""
    experts = jnp.asarray([[2, 0], [4, 4], [0, 3]])
    dispatch, counts = sort_by_expert(experts, 4)
    assert counts.tolist() == [2, 0, 1, 1]
    assert dispatch.source.tolist() == [1, 4, 0, 5, -1, -1]
    assert dispatch.slot.tolist() == [[2, 0], [-1, -1], [1, 3]]
    x = normal(0, 3, 2)
    sent = send(x, dispatch)
    np.testing.assert_array_equal(sent[:4], [x[0], x[2], x[0], x[2]])
    returned = collect(sent, dispatch)
    np.testing.assert_array_equal(returned[0], [x[0], x[0]])
    np.testing.assert_array_equal(returned[2], [x[2], x[2]])
    np.testing.assert_array_equal(combine(sent, dispatch), [2 * x[0], [0, 0], 2 * x[2]])


def test_gradients_of_sending_and_collecting_are_those_of_the_gathers() -> None:
    experts = jnp.asarray(np.random.default_rng(0).integers(0, 5, (7, 3)))
    dispatch, _ = sort_by_expert(experts, 4)
    x, weights = normal(1, 7, 2), normal(2, 7, 3, 2)

    def there_and_back(send: Callable, collect: Callable) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(weights * collect(jnp.tanh(send(x)))))(x)

    ours = there_and_back(lambda x: send(x, dispatch), lambda y: collect(y, dispatch))
    token = jnp.where(dispatch.source < 0, -1, dispatch.source // 3)
    plain = there_and_back(
        lambda x: routing.take_rows(x, token), lambda y: routing.take_rows(y, dispatch.slot)
    )
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-14)
    # A token's choices all see the same row, so the gradient adds up those that have a slot.
    kept = jnp.sum(jnp.where((experts < 4)[..., None], weights, 0), axis=1)
    np.testing.assert_allclose(ours, (1 - jnp.tanh(x) ** 2) * kept, rtol=0, atol=1e-14)


def test_documents_are_summed_wherever_their_tokens_stand() -> None:
    x, ids = normal(0, 2, 6, 3), jnp.asarray([[1, 1, 2, 2, 2, 0], [7, 900, 7, 900, 900, 7]])
    found = routing.of_documents(x, ids)
    for row in range(2):
        for place in range(6):
            own = x[row][ids[row] == ids[row, place]]
            np.testing.assert_allclose(found[row, place], own.sum(0), rtol=0, atol=1e-14)
