"""Losses in which every row of one side meets every row of the other, in chunks that pass around
the devices.

Pairwise sigmoids: Zhai et al., 2023, arXiv:2303.15343. Softmax both ways: Radford et al., 2021,
arXiv:2103.00020.

Each device has some rows of both sides. Those of x stay; those of y pass around a ring of devices,
together with what is added up for them, until they are home again. So no device ever holds more
similarities than those of its own rows and the rows of one device. Gradients are made in the
forward pass, while the similarities are at hand.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any
Axes = tuple[str, ...]  # the mesh axes over which rows are split, inside `shard_map`

NO_PAIR = -1  # the number of rows that only fill up a batch


class Similarity(NamedTuple):
    """Logits are l_ij = scale · x_i · y_j + bias."""

    scale: jax.Array  # []
    bias: jax.Array  # []


class Sides(NamedTuple):
    """The rows of a device."""

    x: jax.Array  # [rows, width]
    y: jax.Array  # [rows, width]


def sigmoid_loss(
    similarity: Similarity, sides: Sides, pairs: jax.Array, axes: Axes = ()
) -> jax.Array:
    """Σ_i Σ_j −log σ(z_ij l_ij) over the x of this device and the y of all devices, with z_ij = 1
    for the two rows of a pair and −1 for all others.

    Args:
        pairs: int32 [rows], a number for every pair, or `NO_PAIR`.
        axes: over which the rows are split.
    """
    return _summed(_sigmoid, axes, similarity, sides, pairs)


def softmax_loss(
    similarity: Similarity, sides: Sides, pairs: jax.Array, axes: Axes = ()
) -> jax.Array:
    """½ Σ_i (log Σ_j exp l_ij − l_ii) + ½ Σ_j (log Σ_i exp l_ij − l_jj), where the outer sums are
    over the rows of this device and the inner ones over those of all devices; arguments as in
    `sigmoid_loss`."""
    return _summed(_softmax, axes, similarity, sides, pairs)


LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


class _Rows(NamedTuple):
    """The rows of one side on a device."""

    x: jax.Array  # [rows, width]
    pairs: jax.Array  # [rows]


_Gradients = tuple[Similarity, Sides]
_Form = Callable[[Axes, Similarity, _Rows, _Rows], tuple[jax.Array, _Gradients]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(
    form: _Form, axes: Axes, similarity: Similarity, sides: Sides, pairs: jax.Array
) -> jax.Array:
    return _forward(form, axes, similarity, sides, pairs)[0]


def _forward(
    form: _Form, axes: Axes, similarity: Similarity, sides: Sides, pairs: jax.Array
) -> tuple[jax.Array, _Gradients]:
    return form(axes, similarity, _Rows(sides.x, pairs), _Rows(sides.y, pairs))


def _backward(
    form: _Form, axes: Axes, gradients: _Gradients, cotangent: jax.Array
) -> tuple[Similarity, Sides, None]:
    similarity, sides = jax.tree.map(lambda x: x * cotangent.astype(x.dtype), gradients)
    return similarity, sides, None


_summed.defvjp(_forward, _backward)


def _sigmoid(
    axes: Axes, similarity: Similarity, own: _Rows, other: _Rows
) -> tuple[jax.Array, _Gradients]:
    def turn(staying: tuple, passing: tuple) -> tuple[tuple, tuple]:
        (total, gradients), (other, d_other) = staying, passing
        met = _meet(similarity, own, other)
        sign = jnp.where(met.same, 1.0, -1.0)
        total += jnp.sum(jax.nn.softplus(-sign * met.logits), where=met.real)
        d_logits = jnp.where(met.real, -sign * jax.nn.sigmoid(-sign * met.logits), 0.0)
        more, d_more = _pulled(d_logits, similarity, met, own, other)
        return (total, _plus(gradients, more)), (other, d_other + d_more)

    start = (jnp.zeros((), own.x.dtype), _nothing(own)), (other, jnp.zeros_like(other.x))
    (total, (d_similarity, d_own)), (_, d_other) = _around(axes, turn, *start)
    return total, (d_similarity, Sides(d_own, d_other))


def _softmax(
    axes: Axes, similarity: Similarity, own: _Rows, other: _Rows
) -> tuple[jax.Array, _Gradients]:
    def measure(staying: tuple, passing: tuple) -> tuple[tuple, tuple]:
        (of_pairs, of_own), (other, of_other) = staying, passing
        met = _meet(similarity, own, other)
        of_pairs += jnp.sum(met.logits, where=met.real & met.same)
        logits = jnp.where(met.real, met.logits, -jnp.inf)
        of_own = jnp.logaddexp(of_own, jax.nn.logsumexp(logits, axis=1))
        of_other = jnp.logaddexp(of_other, jax.nn.logsumexp(logits, axis=0))
        return (of_pairs, of_own), (other, of_other)

    none = jnp.full(own.pairs.shape, -jnp.inf, own.x.dtype)
    start = (jnp.zeros((), own.x.dtype), none), (other, none)
    (of_pairs, of_own), (_, of_other) = _around(axes, measure, *start)
    total = jnp.sum((of_own + of_other) / 2, where=own.pairs != NO_PAIR) - of_pairs

    def turn(gradients: tuple, passing: tuple) -> tuple[tuple, tuple]:
        other, of_other, d_other = passing
        met = _meet(similarity, own, other)
        shares = jnp.exp(met.logits - of_own[:, None]) + jnp.exp(met.logits - of_other)
        d_logits = jnp.where(met.real, shares / 2 - met.same, 0.0)
        more, d_more = _pulled(d_logits, similarity, met, own, other)
        return _plus(gradients, more), (other, of_other, d_other + d_more)

    passing = (other, of_other, jnp.zeros_like(other.x))
    (d_similarity, d_own), (*_, d_other) = _around(axes, turn, _nothing(own), passing)
    return total, (d_similarity, Sides(d_own, d_other))


class _Met(NamedTuple):
    """Rows of x that meet rows of y, each array [rows, rows]."""

    products: jax.Array
    logits: jax.Array
    same: jax.Array  # whether they are a pair
    real: jax.Array  # whether neither only fills up a batch


def _meet(similarity: Similarity, own: _Rows, other: _Rows) -> _Met:
    products = _product(own.x, other.x.T)
    return _Met(
        products,
        similarity.scale * products + similarity.bias,
        own.pairs[:, None] == other.pairs,
        (own.pairs != NO_PAIR)[:, None] & (other.pairs != NO_PAIR),
    )


def _pulled(
    d_logits: jax.Array, similarity: Similarity, met: _Met, own: _Rows, other: _Rows
) -> tuple[tuple[Similarity, jax.Array], jax.Array]:
    """The gradients of scale, bias and own rows, and that of the others."""
    d_products = similarity.scale * d_logits
    d_similarity = Similarity(jnp.sum(d_logits * met.products), jnp.sum(d_logits))
    d_own, d_other = _product(d_products, other.x), _product(d_products.T, own.x)
    return (d_similarity, d_own), d_other


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """A large scale would show that a TPU rounds what it multiplies to bfloat16 otherwise."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _nothing(own: _Rows) -> tuple[Similarity, jax.Array]:
    zero = jnp.zeros((), own.x.dtype)
    return Similarity(zero, zero), jnp.zeros_like(own.x)


def _plus(one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, one, other)


def _around(
    axes: Axes,
    turn: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    staying: PyTree,
    passing: PyTree,
) -> tuple[PyTree, PyTree]:
    """`turn` of what stays on a device and of what passes by, once for every device; in the end,
    what passes is where it came from."""
    count = math.prod(jax.lax.axis_size(axis) for axis in axes)
    if count == 1:
        return turn(staying, passing)
    steps = [(device, (device + 1) % count) for device in range(count)]

    def one(carried: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
        staying, passing = turn(*carried)
        return (staying, jax.lax.ppermute(passing, axes, steps)), None

    return jax.lax.scan(one, (staying, passing), length=count)[0]
