"""What every registered mixer must do, in float64. A mixer is found through the registry, its
definition in `definitions`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.cases import D_MODEL
from contracts.contract import (
    LENGTH,
    assert_close,
    build,
    continued,
    differentiated,
    documents,
    moved,
    one_document,
    part_of,
    run,
    setup,
    short_call,
)
from contracts.definition import Case

from jaxformer.model.rows import RowInfo


def test_a_token_leaves_outputs_before_it_bit_unchanged(case: Case) -> None:
    mixer, params, x = setup(case)
    before = run(mixer, params, x)
    for t in (1, 5, LENGTH - 1):
        after = run(mixer, params, moved(x, t))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.abs(after[:, t] - before[:, t]).max() > 1e-3


def test_outputs_and_gradients_are_those_of_the_definition_across_chunks(
    case: Case, small_chunks: None
) -> None:
    """Seven tokens are two chunks of three and a rest; rows of padding alone give finite ones."""
    mixer, params, x = setup(case, length=7)
    rows = one_document(7)
    weights = np.random.default_rng(3).normal(size=x.shape)

    def defined(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jax.vmap(lambda row: case.definition(params, row, case.config, case.scheme))(x)
        return jnp.sum(y * weights), y

    (_, y), gradients = differentiated(mixer)(params, x, rows, weights)
    (_, expected_y), expected = jax.jit(jax.value_and_grad(defined, (0, 1), has_aux=True))(
        params, x
    )
    assert_close(y, expected_y)
    jax.tree.map(assert_close, gradients, expected)

    nothing = rows._replace(segment_ids=np.zeros_like(rows.segment_ids))
    padded = differentiated(mixer)(params, x, nothing, weights)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(padded))


@pytest.mark.parametrize("pieces", [(5, 1, 5), (1,) * LENGTH], ids=str)
def test_whole_equals_split_with_the_cache_handed_over(case: Case, pieces: tuple) -> None:
    mixer, params, x = setup(case)
    rows = RowInfo(one_document(LENGTH).positions, documents())
    whole = run(mixer, params, x, rows)
    cache, start = mixer.init_cache(2, LENGTH, jnp.float64), 0
    for length in pieces:
        part = slice(start, start + length)
        y, cache = continued(mixer)(params, x[:, part], part_of(rows, part), cache)
        assert_close(y, whole[:, part])
        start += length


def test_tokens_of_a_short_call_can_be_taken_back(case: Case) -> None:
    """Five tokens are read at once behind five others, and three or none, all or one are taken
    back: what then follows is as if they had never been."""
    _, params, x = setup(case)
    mixer = build(case, taken_back=5)
    rows = RowInfo(one_document(LENGTH).positions, documents()[:, :1] * np.ones(LENGTH, np.int32))
    start = mixer.init_cache(2, LENGTH + 5, jnp.float64)
    first, second = slice(0, 6), slice(6, 11)
    _, start = continued(mixer)(params, x[:, first], part_of(rows, first), start)
    whole, kept = short_call(mixer)(params, x[:, second], part_of(rows, second), start)
    whole = np.asarray(whole)
    assert_close(whole, run(build(case), params, x, rows)[:, second])
    for counts in ([3, 0], [5, 1]):
        cache = mixer.take_back(kept, jnp.array(counts, jnp.int32))
        # Each row reads again what it took back, at the front of as long a call; then padding.
        again = LENGTH - np.array(counts)[:, None] + np.arange(5)
        real, place = np.int32(again < LENGTH), np.minimum(again, LENGTH - 1)
        tokens = np.take_along_axis(x, place[..., None], axis=1)
        y, _ = short_call(mixer)(params, tokens, RowInfo(again, real), cache)
        y = np.asarray(y)
        for row in np.flatnonzero(counts):
            assert_close(y[row, : counts[row]], whole[row, 5 - counts[row] :])


def test_pieces_of_padding_before_a_document_leave_no_trace(case: Case) -> None:
    """As in a batch of prompts that end together: one row's first piece is all padding."""
    mixer, params, x = setup(case)
    segment_ids = np.array([[0] * 6 + [1] * 5, [1] * LENGTH], np.int32)
    positions = np.maximum(np.arange(LENGTH) - np.array([[6], [0]]), 0)
    rows = RowInfo(positions, segment_ids)
    cache, parts = mixer.init_cache(2, LENGTH, jnp.float64), []
    for part in (slice(0, 5), slice(5, 6), slice(6, 11)):
        y, cache = continued(mixer)(params, x[:, part], part_of(rows, part), cache)
        parts.append(y)
    y = np.concatenate(parts, axis=1)
    assert_close(y[0, 6:], run(mixer, params, x[:1, 6:])[0])
    assert_close(y[1], run(mixer, params, x)[1])


def test_rows_of_several_chunks_equal_their_pieces(case: Case) -> None:
    """130 tokens are two chunks of 64 and a rest; documents end inside chunks and at their ends."""
    mixer, params, x = setup(case, length=130)
    segment_ids = np.array([[1] * 64 + [2] * 66, [1] * 30 + [2] * 99 + [3]], np.int32)
    positions = one_document(130).positions
    rows = RowInfo(positions, segment_ids)
    whole = run(mixer, params, x, rows)
    cache, parts = mixer.init_cache(2, 130, jnp.float64), []
    for part in (slice(0, 65), slice(65, 130)):
        y, cache = continued(mixer)(params, x[:, part], part_of(rows, part), cache)
        parts.append(y)
    assert_close(np.concatenate(parts, axis=1), whole)


def test_packed_documents_equal_each_document_alone(case: Case) -> None:
    """The one of three tokens is alone in a row of five, as long as others are."""
    mixer, params, x = setup(case)
    segment_ids = documents()
    places = [[*range(5), 0, *range(3), *range(2)], [*range(5), 0, *range(5)]]
    positions = np.concatenate(places).reshape(2, LENGTH)
    rows = RowInfo(positions, segment_ids)
    packed = run(mixer, params, x, rows)
    for row in range(2):
        for document in range(1, int(segment_ids[row].max()) + 1):
            own = np.flatnonzero(segment_ids[row] == document)
            length = 1 if len(own) == 1 else 5
            tokens = np.zeros((1, length, D_MODEL))
            tokens[0, : len(own)] = x[row, own]
            alone, real = one_document(length, batch=1), np.arange(length) < len(own)
            alone = alone._replace(segment_ids=np.int32(real)[None])
            y = run(mixer, params, tokens, alone)
            assert_close(packed[row, own], y[0, : len(own)])
