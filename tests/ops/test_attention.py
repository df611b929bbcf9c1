"""Blocks of queries that skip keys, against one look at all keys."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops.attention import LogForget, Tokens, Visibility, attend
from jaxformer.ops.row_attention import row_attention

LENGTH = 200  # four blocks, the last one short


def documents() -> Tokens:
    """A row of documents of 150, 1, 3 and 46 tokens, and a row of one."""
    lengths = [[150, 1, 3, 46], [LENGTH]]
    segments = [np.repeat(np.arange(1, len(row) + 1), row) for row in lengths]
    positions = [np.concatenate([np.arange(n) for n in row]) for row in lengths]
    index = jnp.arange(LENGTH)[None]
    return Tokens(index, jnp.asarray(np.stack(positions)), jnp.asarray(np.stack(segments)))


VIEWS = [(None, 0), (20, 0), (20, 3), (70, 5), (2, 9)]  # with sinks that reach beyond the window


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_blocks_equal_one_look_at_all_keys(view: tuple, is_causal: bool) -> None:
    visibility = Visibility(*view, is_causal)
    with jax.enable_x64(True):
        q, k, v = jax.random.normal(jax.random.key(0), (3, 2, LENGTH, 2, 4), jnp.float64)
        tokens, options = documents(), {"scale": 0.5, "slopes": np.array([0.5, 0.1])}
        options |= {"visibility": visibility}
        c = jnp.cumsum(jax.random.normal(jax.random.key(1), (2, LENGTH, 2), jnp.float64), axis=1)
        rows = (q, k, v, tokens.positions, tokens.segment_ids)
        blocks = row_attention(*rows, log_forget=c, **options)
        whole = attend(q, k, v, tokens, tokens, log_forget=LogForget(c, c), **options)
        np.testing.assert_allclose(blocks, whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "full"])
def test_the_keys_that_queries_see_are_those_of_the_mask(is_causal: bool) -> None:
    for length, window, sinks in itertools.product((1, 7, 40), (None, 1, 6, 40), (0, 3, 9)):
        places = jnp.arange(length)[None]
        tokens = Tokens(places, places, jnp.ones_like(places))
        visibility = Visibility(window, sinks, is_causal)
        seen = visibility.mask(tokens, tokens).sum() / length
        assert visibility.keys(length) == pytest.approx(float(seen), rel=1e-6)


def test_logits_are_float32_for_bfloat16_inputs() -> None:
    """256 equal logits but for 2⁻¹⁰, which bfloat16 logits near 4 would not tell apart."""
    q = jnp.full((1, 1, 1, 2), 2.0, jnp.bfloat16)
    k = jnp.zeros((1, 2, 1, 2), jnp.bfloat16).at[0, :, 0, 0].set(2.0)
    k = k.at[0, 1, 0, 1].set(2.0**-11)
    v = jnp.array([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
    tokens = Tokens(*jnp.ones((3, 1, 2), jnp.int32))
    query = jax.tree.map(lambda part: part[:, :1], tokens)
    jaxpr = jax.make_jaxpr(
        lambda q, k, v: attend(q, k, v, query, tokens, visibility=Visibility(), scale=1.0)
    )(q, k, v)
    softmax_inputs = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert softmax_inputs[0].outvars[0].aval.dtype == jnp.float32


def test_sinks_are_found_where_positions_have_gaps() -> None:
    """As in a layer that some tokens pass by: of three sinks, it has the first two."""
    with jax.enable_x64(True):
        q, k, v = jax.random.normal(jax.random.key(0), (3, 2, LENGTH, 2, 4), jnp.float64)
        tokens = documents()
        positions = jnp.where(tokens.positions < 2, tokens.positions, 3 * tokens.positions)
        tokens = tokens._replace(positions=positions)
        options = {"scale": 0.5, "visibility": Visibility(20, 3)}
        blocks = row_attention(q, k, v, positions, tokens.segment_ids, **options)
        whole = attend(q, k, v, tokens, tokens, **options)
        np.testing.assert_allclose(blocks, whole, rtol=0, atol=1e-14)
