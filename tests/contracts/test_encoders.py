"""What every mixer must do in a model that is not causal, in float64. Engines take three tokens at
once, so that rows of five are a chunk and a rest, and documents lie in both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.contract import (
    assert_close,
    build,
    differentiated,
    moved,
    one_document,
    run,
    setup,
)
from contracts.definition import Case

from jaxformer.errors import UserError
from jaxformer.model.rows import RowInfo

pytestmark = pytest.mark.usefixtures("small_chunks")


def packed() -> RowInfo:
    """Documents of two tokens, with padding in front of them or behind."""
    segment_ids = np.array([[0, 1, 1, 2, 2], [1, 1, 2, 2, 0]], np.int32)
    return RowInfo(np.array([[0, 0, 1, 0, 1], [0, 1, 0, 1, 0]]), segment_ids)


def test_outputs_and_gradients_are_those_of_the_definition(encoder: Case) -> None:
    mixer, params, x = setup(encoder)
    rows = one_document(x.shape[1])
    weights = np.random.default_rng(3).normal(size=x.shape)

    def defined(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jax.vmap(lambda row: encoder.definition(params, row, encoder.config, encoder.scheme))(x)
        return jnp.sum(y * weights), y

    (_, y), gradients = differentiated(mixer)(params, x, rows, weights)
    (_, expected_y), expected = jax.value_and_grad(defined, (0, 1), has_aux=True)(params, x)
    assert_close(y, expected_y)
    jax.tree.map(assert_close, gradients, expected)

    nothing = rows._replace(segment_ids=np.zeros_like(rows.segment_ids))
    padded = differentiated(mixer)(params, x, nothing, weights)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(padded))


def test_a_token_changes_the_outputs_of_its_document_and_no_other(encoder: Case) -> None:
    """Of its window alone, if it has one. Padding is a document by itself. Recurrences carry the
    rounding of sums over a chunk from one document to the next."""
    mixer, params, x = setup(encoder)
    length, rounding = x.shape[1], 0.0 if mixer.form == "pairs" else 1e-14
    rows = one_document(length) if encoder.on_grid else packed()
    before = run(mixer, params, x, rows)
    for t in range(length):
        after = run(mixer, params, moved(x, t), rows)
        sees = rows.segment_ids == rows.segment_ids[:, t : t + 1]
        window = getattr(encoder.config, "window", None)
        if window is not None:
            near = np.abs(np.arange(length) - t) < window
            sees &= near | (rows.positions[:, t : t + 1] < encoder.config.sinks)
        changed = np.abs(after - before).max(-1)
        np.testing.assert_array_equal(changed > 1e-9, sees)
        assert np.where(sees, 0.0, changed).max() <= rounding


def test_packed_documents_equal_each_document_alone(encoder: Case) -> None:
    mixer, params, x = setup(encoder)
    if encoder.on_grid:
        pytest.skip("a picture is a row")
    rows = packed()
    y = run(mixer, params, x, rows)
    own = [(row, rows.segment_ids[row] == document) for row in (0, 1) for document in (1, 2)]
    alone = run(mixer, params, np.stack([x[place] for place in own]))
    assert_close(np.stack([y[place] for place in own]), alone)


def test_bfloat16_stays_bfloat16(encoder: Case) -> None:
    mixer = build(encoder, dtype="bfloat16")
    _, params, x = setup(encoder)
    rows = one_document(x.shape[1])
    y, _ = jax.eval_shape(mixer.apply, {"params": params}, x.astype(jnp.bfloat16), rows)
    assert (y.dtype, y.shape) == (jnp.bfloat16, x.shape)


def test_there_is_no_cache(encoder: Case) -> None:
    mixer = build(encoder)
    assert mixer.cache_bytes(64) == 0
    with pytest.raises(UserError, match="lets tokens see those behind them, so a sequence cannot"):
        mixer.init_cache(1, 64, jnp.float64)
