"""Rows that visit experts on other devices: as many as fit at once, and the rest in further rounds.

Tokens choose how many rows a device receives: it may receive all of them. But arrays have fixed
sizes once a program is compiled, so a round has room for a little more than an equal share. Nothing
is dropped: rows without room wait for the next round. Equally busy experts need only one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops.routing import take_rows

AXIS = "expert"
SPARE = 1.25  # the room of a round, as a multiple of an equal share
TILE = 8 * 128  # numbers of a tile of a TPU's memory
UNIT = 256  # rows, of which kernels take whole blocks
FURTHER = "further_rounds"  # the name of loops that equally busy experts do not enter

PyTree = Any

# (the round's number, integers, what has gradients) → what the round adds
OfRound = Callable[[jax.Array | int, PyTree, PyTree], jax.Array]


def room_of_round(sent: int, most: int) -> int:
    """Rows that a device has room for, where each sends `sent`, and may receive `most`."""
    return min(most, -(-int(SPARE * sent) // UNIT) * UNIT)


def in_rounds(
    of_round: OfRound, rows: jax.Array, room: int, most: int, given: PyTree, operands: PyTree
) -> jax.Array:
    """Σ_r of_round(r, given, operands), over as many rounds of `room` as `rows` need.

    Further rounds keep nothing for their gradients, but are computed again.

    Args:
        rows: the largest number on any device that this one exchanges rows with.
        room: how many rows of a device a round takes.
        most: how many rows a device may have, whatever tokens choose.
        given: what has no gradient.
        operands: what has one.
    """
    if room >= most:
        return of_round(0, given, operands)
    axes = jax.sharding.get_abstract_mesh().manual_axes
    needed = jax.lax.pmax(-(-rows // room), axes)  # on all devices alike
    return _sum_of_rounds(of_round, needed, given, operands)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_of_rounds(
    of_round: OfRound, needed: jax.Array, given: PyTree, operands: PyTree
) -> jax.Array:
    return _sum_forward(of_round, needed, given, operands)[0]


def _sum_forward(
    of_round: OfRound, needed: jax.Array, given: PyTree, operands: PyTree
) -> tuple[jax.Array, tuple]:
    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        return total + of_round(number, given, operands)

    first, pull = jax.vjp(partial(of_round, 0, given), operands)
    with jax.named_scope(FURTHER):
        total = jax.lax.fori_loop(1, needed, add, first)
    return total, (pull, needed, given, operands)


def _sum_backward(of_round: OfRound, kept: tuple, gradient: jax.Array) -> tuple:
    pull, needed, given, operands = kept

    def add(number: jax.Array, sums: PyTree) -> PyTree:
        _, pull = jax.vjp(partial(of_round, number, given), operands)
        return jax.tree.map(jnp.add, sums, *pull(gradient))

    (sums,) = pull(gradient)
    with jax.named_scope(FURTHER):
        return None, None, jax.lax.fori_loop(1, needed, add, sums)


_sum_of_rounds.defvjp(_sum_forward, _sum_backward)


class Pieces(NamedTuple):
    """[senders, receivers] int32: what every device sends to every other one. `begin` is the
    piece's first row at its sender, `place` that at its receiver."""

    begin: jax.Array
    size: jax.Array
    place: jax.Array

    def returned(self) -> "Pieces":
        return Pieces(self.place.T, self.size.T, self.begin.T)


def pieces_of_round(
    counts: jax.Array, number: jax.Array | int, room: int
) -> tuple[Pieces, jax.Array]:
    """The pieces of a round, for rows in the order of their experts.

    Args:
        counts: [senders, receivers, experts of each], how many rows go there in all rounds. They
            arrive in the order of their senders, `room` in every round.

    Returns:
        (pieces, the counts of this round)
    """
    sizes = jnp.sum(counts, axis=2)
    before = jnp.cumsum(sizes, axis=0) - sizes  # from other senders
    ends = before[:, :, None] + jnp.cumsum(counts, axis=2)

    def place(row: jax.Array) -> jax.Array:
        return jnp.clip(row - number * room, 0, room)

    begin = jnp.cumsum(sizes, axis=1) - sizes + jnp.clip(number * room - before, 0, sizes)
    pieces = Pieces(begin, place(before + sizes) - place(before), place(before))
    return pieces, place(ends) - place(ends - counts)


def send_rows(rows: jax.Array, pieces: Pieces, length: int) -> jax.Array:
    """What every device of `expert` receives: [rows, ...] → [length, ...], with anything where
    nothing arrives. Its gradient goes the same way back."""
    return _swap(rows, pieces, (len(rows), length), False)


def return_rows(rows: jax.Array, pieces: Pieces, length: int) -> jax.Array:
    """The way back of `send_rows`: [rows, ...] → [length, ...], with zeros where nothing arrives,
    since rounds are added up."""
    return _swap(rows, pieces.returned(), (len(rows), length), True)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _swap(rows: jax.Array, pieces: Pieces, lengths: tuple[int, int], back: bool) -> jax.Array:
    return jax.lax.platform_dependent(
        rows,
        pieces,
        tpu=partial(ragged_swap, length=lengths[1], back=back),
        default=partial(padded_swap, length=lengths[1]),
    )


def _swap_forward(
    rows: jax.Array, pieces: Pieces, lengths: tuple[int, int], back: bool
) -> tuple[jax.Array, Pieces]:
    return _swap(rows, pieces, lengths, back), pieces


def _swap_backward(
    lengths: tuple[int, int], back: bool, pieces: Pieces, gradient: jax.Array
) -> tuple[jax.Array, None]:
    return _swap(gradient, pieces.returned(), lengths[::-1], not back), None


_swap.defvjp(_swap_forward, _swap_backward)


def ragged_swap(rows: jax.Array, pieces: Pieces, length: int, back: bool) -> jax.Array:
    """The exchange of pieces as they are, which XLA has for TPUs."""
    own = jax.lax.axis_index(AXIS)
    begin, size, place = (array[own] for array in pieces)
    received = pieces.size[:, own]
    shape = rows.shape[1:]
    if rows.ndim > 1 and rows.shape[1] % TILE == 0:
        rows = rows.reshape(len(rows), 8, -1)  # whole tiles, which XLA need not rearrange
    begun = jnp.zeros if back else jax.lax.empty
    arrived = begun((length, *rows.shape[1:]), rows.dtype)
    arrived = jax.lax.ragged_all_to_all(rows, arrived, begin, size, place, received, axis_name=AXIS)
    return arrived.reshape(length, *shape)


def padded_swap(rows: jax.Array, pieces: Pieces, length: int) -> jax.Array:
    """An exchange of pieces of one size, the largest that one may have."""
    own = jax.lax.axis_index(AXIS)
    most = min(len(rows), length)
    number = jnp.arange(most)
    index = pieces.begin[own][:, None] + number
    index = jnp.where(number < pieces.size[own][:, None], index, -1)  # [receivers, most]
    sent = take_rows(rows, index)
    arrived = jax.lax.all_to_all(sent, AXIS, split_axis=0, concat_axis=0, tiled=True)

    place, size = pieces.place[:, own], pieces.size[:, own]
    row = jnp.arange(length)[:, None]
    inside = (row >= place) & (row < place + size)  # [length, senders]
    source = jnp.sum(jnp.where(inside, jnp.arange(len(size)) * most + row - place, 0), axis=1)
    source = jnp.where(jnp.any(inside, axis=1), source, -1)
    return take_rows(arrived.reshape(-1, *rows.shape[1:]), source)
