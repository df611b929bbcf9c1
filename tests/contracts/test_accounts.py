"""Every registered mixer stays finite, and tells its costs as they are."""

import jax
import jax.numpy as jnp
import pytest
from contracts.cases import CASES, D_MODEL
from contracts.contract import DIMS, LENGTH, assert_close, build, one_document, run, setup
from contracts.definition import Case

from jaxformer.model.dims import Dims
from jaxformer.model.mixers import MIXERS


def test_every_registered_mixer_has_a_case() -> None:
    registered = {config.model_fields["kind"].default for config in MIXERS}
    assert registered == {case.config.kind for case in CASES.values()}


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
