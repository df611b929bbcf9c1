"""A mixer reads its own arrays, and nothing beside them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from contracts.cases import D_MODEL
from contracts.contract import DIMS, LENGTH, assert_close, build, one_document, parameters, run
from contracts.definition import Case

from jaxformer.model.dims import Dims
from tests.guarded import guarded

FLOAT32 = Dims(D_MODEL, DIMS.num_layers, DIMS.init, dtype="float32")


def in_float32(tree: dict) -> dict:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, LENGTH, D_MODEL)).astype(np.float32)


def test_arrays_between_nan_give_what_they_give_elsewhere(case: Case) -> None:
    mixer, x, params = build(case, FLOAT32), rows(), in_float32(parameters(case))
    expected = run(mixer, params, jnp.asarray(x))
    np.testing.assert_array_equal(run(mixer, jax.tree.map(guarded, params), guarded(x)), expected)


def test_weights_closed_over_are_never_broadcast_within_a_product(case: Case) -> None:
    """XLA knows such weights, and broadcasts those that are all alike: here all are, as at the
    start some are. YNNPACK reads beyond what is broadcast in a fusion of its own."""
    mixer, x = build(case, FLOAT32), jnp.asarray(rows())
    params = jax.tree.map(lambda leaf: np.full_like(leaf, 0.1), in_float32(parameters(case)))
    closed = jax.jit(lambda x: mixer.apply({"params": params}, x, **one_document(LENGTH))[0])
    compiled = closed.lower(x).compile()
    assert not broadcast_products(compiled.as_text())
    assert_close(compiled(x), run(mixer, params, x), relative=1e-4)


def broadcast_products(program: str) -> list[str]:
    """The YNNPACK fusions of a compiled program that hold a product and a broadcast."""
    called = re.findall(r'calls=%(\S+?),.*"__ynn_fusion"', program)
    bodies = dict(re.findall(r"^%(\S+) .*?\{\n(.*?)^\}", program, re.DOTALL | re.MULTILINE))
    return [name for name in called if {"dot", "broadcast"} <= operations(bodies[name])]


def operations(body: str) -> set[str]:
    return set(re.findall(r"= \S+ ([\w-]+)\(", body))
