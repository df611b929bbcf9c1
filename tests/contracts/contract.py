"""What the contract's tests share: mixers with parameters and inputs, compiled once."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from contracts.cases import D_MODEL
from contracts.definition import Case
from flax.core import meta

from jaxformer.model.dims import Dims, InitConfig
from jaxformer.model.mixers import Cache, Mixer, build_mixer
from jaxformer.model.mixers.kept import mix
from jaxformer.model.rows import RowInfo

# Longer than a window with its sinks, shorter than two, and odd: no chunk or block divides it.
LENGTH = 11
DIMS = Dims(D_MODEL, num_layers=2, init=InitConfig(std="fan_in", output="plain"), dtype="float64")


def build(case: Case, dims: Dims = DIMS) -> Mixer:
    return build_mixer(case.config, dims, case.scheme, parent=None)


def one_document(length: int, batch: int = 2) -> RowInfo:
    """Of rows that hold one document each."""
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    return RowInfo(positions, jnp.ones((batch, length), jnp.int32))


def part_of(rows: RowInfo, part: slice) -> RowInfo:
    return jax.tree.map(lambda array: array[:, part], rows)


@functools.cache
def parameters(case: Case) -> dict:
    """All away from their trivial start."""

    @jax.jit
    def moved() -> dict:
        x = jnp.zeros((2, LENGTH, D_MODEL))
        start = build(case).init(jax.random.key(0), x, one_document(LENGTH))
        leaves, tree = jax.tree.flatten(meta.unbox(start["params"]))
        keys = jax.random.split(jax.random.key(2), len(leaves))
        shapes = map(jnp.shape, leaves)
        noise = [jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True)]
        return jax.tree.unflatten(tree, [a + 0.1 * b for a, b in zip(leaves, noise, strict=True)])

    return moved()


def setup(case: Case, length: int = LENGTH) -> tuple[Mixer, dict, jax.Array]:
    """The mixer, its parameters, and an input [2, length, d]."""
    x = jax.random.normal(jax.random.key(1), (2, length, D_MODEL))
    return build(case), parameters(case), x


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


def run(mixer: Mixer, params: dict, x: jax.Array, rows: RowInfo | None = None) -> jax.Array:
    rows = one_document(x.shape[1], x.shape[0]) if rows is None else rows
    return applied(mixer)(params, x, rows)


def assert_close(actual: jax.Array, expected: jax.Array, relative: float = 1e-10) -> None:
    """Within `relative` of the largest expected entry: entries near zero carry its rounding."""
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=relative * float(jnp.max(jnp.abs(expected)))
    )


def documents() -> jax.Array:
    """Rows of 11 tokens: documents of 5, 1, 3 and padding; and of 5, 1, 5."""
    rows = [[1] * 5 + [2] + [3] * 3 + [0] * 2, [1] * 5 + [2] + [3] * 5]
    return jnp.array(rows, jnp.int32)
