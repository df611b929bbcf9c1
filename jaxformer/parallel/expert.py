"""Experts on several devices: tokens visit the experts that they chose, and return."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxformer.ops.routing import (
    collect,
    combine,
    experts_of_rows,
    in_slots,
    put_places,
    send,
    slots_of_round,
    sort_by_expert,
    take_places,
)
from jaxformer.parallel.mesh import DATA_AXES
from jaxformer.parallel.own_tokens import gather
from jaxformer.parallel.rounds import (
    AXIS,
    in_rounds,
    pieces_of_round,
    return_rows,
    room_of_round,
    send_rows,
)
from jaxformer.parallel.rules import rows_before_lanes

PLACES = {"experts": AXIS, "d_model": "fsdp", "d_hidden": "tensor"}

PyTree = Any


class Rows(NamedTuple):
    """Rows in the order of the experts, and how many each expert has."""

    x: jax.Array  # [rows, d_model]
    gates: jax.Array  # [rows]
    counts: jax.Array  # [experts] int32


# (the experts' weights, rows) → gate · E(x) [rows, d_model]
OfRows = Callable[[PyTree, Rows], jax.Array]


class Tokens(NamedTuple):
    """Tokens and the experts that they chose; an expert beyond all is nobody, for padding and what
    is dropped."""

    x: jax.Array  # [tokens, d_model]
    experts: jax.Array  # [tokens, k] int32
    gates: jax.Array  # [tokens, k]


class Picks(NamedTuple):
    """Tokens of rows and the places of those that each expert chose; −1 is an empty slot."""

    x: jax.Array  # [batch, length, d_model]
    places: jax.Array  # [batch, experts, slots] int32
    gates: jax.Array  # [batch, experts, length]


def exchange(devices: int, chosen: int) -> str:
    """How tokens reach the experts of `devices` devices: `all_to_all` sends a token to those that
    have an expert of its `chosen` ones, `ring` to all of them, which is less where there are no
    more devices than choices."""
    return "none" if devices == 1 else "ring" if devices <= chosen else "all_to_all"


def visit_experts(
    of_rows: OfRows, weights: PyTree, axes: PyTree, tokens: Tokens | Picks, num_experts: int
) -> jax.Array:
    """y_t = Σ_j gate_tj E_j(x_t), over the experts that each token chose, or that chose it.

    On a mesh, every device sorts the tokens that it has or is shown. Weights are split over
    `expert` by experts, and like those of other layers over `fsdp`, where they are gathered, and
    `tensor`, where the parts of the result are added up. For the exchange over `expert`, see
    `exchange`: `all_to_all` sends rows twice, there and back. A device has room for a little more
    than an equal share of rows, and the rest follows in further rounds. Where experts choose, there
    is one round, since they all take equally many.

    Args:
        weights: of all experts, arrays that begin with [experts].
        axes: the logical axes of the weights, a tree of PartitionSpecs.

    Returns:
        shaped like x.
    """
    split = _split_axes(len(tokens.x), (*DATA_AXES, "tensor"))
    visit = _way(tokens, split.get(AXIS, 1))
    if not split:
        return visit(of_rows, weights, tokens, num_experts)

    def place(names: PartitionSpec, weight: jax.Array) -> PartitionSpec:
        found = (PLACES.get(name) for name in names)
        spec = PartitionSpec(*(axis if axis in split else None for axis in found))
        return rows_before_lanes(names, spec, weight.shape, split)

    places = jax.tree.map(place, axes, weights, is_leaf=_is_spec)

    def of_shard(weights: PyTree, tokens: Tokens | Picks) -> jax.Array:
        whole = partial(_whole, dtype=tokens.x.dtype)
        weights = jax.tree.map(whole, weights, places, is_leaf=_is_spec)
        y = visit(of_rows, weights, tokens, num_experts)
        return jax.lax.psum(y, "tensor") if "tensor" in split else y

    rows = _rows_over(split)
    return jax.shard_map(
        of_shard,
        in_specs=(places, rows),
        out_specs=rows,
        axis_names=_own_axes(),
        check_vma=False,
    )(weights, tokens)


def _way(tokens: Tokens | Picks, devices: int) -> Callable[..., jax.Array]:
    if isinstance(tokens, Picks):
        return _of_picks
    ways = {"none": _of_own, "ring": _of_ring, "all_to_all": _of_exchanged}
    return ways[exchange(devices, tokens.experts.shape[1])]


def of_own_tokens(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`function` of arrays [tokens, ...], or [rows, ...], of which every device computes its own:
    XLA would gather them all to sort them."""
    split = _split_axes(len(arrays[0]), DATA_AXES)
    if not split:
        return function(*arrays)
    rows = _rows_over(split)
    return jax.shard_map(
        function,
        in_specs=(rows,) * len(arrays),
        out_specs=rows,
        axis_names=_own_axes(),
        check_vma=False,
    )(*arrays)


def _own_axes() -> set[str]:
    """The mesh axes that no `shard_map` around this place has already: all, since a TPU's kernels
    leave none to the compiler."""
    mesh = jax.sharding.get_abstract_mesh()
    return set(mesh.axis_names) - set(mesh.manual_axes)


def _split_axes(tokens: int, axes: Sequence[str]) -> dict[str, int]:
    """The sizes of those mesh axes that have several devices, or none if they cannot split the
    tokens."""
    own, shape = _own_axes(), jax.sharding.get_abstract_mesh().shape
    split = {axis: shape[axis] for axis in axes if axis in own and shape[axis] > 1}
    shards = math.prod(size for axis, size in split.items() if axis in DATA_AXES)
    return {} if tokens % shards else split


def _rows_over(split: Mapping[str, int]) -> PartitionSpec:
    return PartitionSpec(tuple(axis for axis in DATA_AXES if axis in split))


def _of_own(of_rows: OfRows, weights: PyTree, tokens: Tokens, num_experts: int) -> jax.Array:
    return _of_sorted(of_rows, weights, tokens, num_experts, tokens.experts.size)


def _of_ring(of_rows: OfRows, weights: PyTree, tokens: Tokens, num_experts: int) -> jax.Array:
    """Every device sees all tokens, computes its own experts' share, and the shares are added."""
    own = num_experts // jax.lax.axis_size(AXIS)
    every = jax.tree.map(partial(jax.lax.all_gather, axis_name=AXIS, axis=0, tiled=True), tokens)
    local = every.experts - own * jax.lax.axis_index(AXIS)
    local = jnp.where((local >= 0) & (local < own), local, own)
    room = _room(tokens, own)
    shares = _of_sorted(of_rows, weights, every._replace(experts=local), own, room)
    return jax.lax.psum_scatter(shares, AXIS, scatter_dimension=0, tiled=True)


def _of_sorted(
    of_rows: OfRows, weights: PyTree, tokens: Tokens, num_experts: int, room: int
) -> jax.Array:
    """The sum of each token's experts on this device, `room` rows at a time."""

    def of_round(number: jax.Array | int, given: tuple, operands: tuple) -> jax.Array:
        (dispatch, counts), (weights, x, gates) = given, operands
        dispatch, counts = slots_of_round(dispatch, counts, number, room)
        rows = Rows(send(x, dispatch), in_slots(gates, dispatch), counts)
        return combine(of_rows(weights, rows), dispatch)

    dispatch, counts = sort_by_expert(tokens.experts, num_experts)
    given, operands = (dispatch, counts), (weights, tokens.x, tokens.gates)
    most = _most(tokens, num_experts)
    y = in_rounds(of_round, jnp.sum(counts), room, most, given, operands)
    return checkpoint_name(y, "projection")


def _of_exchanged(of_rows: OfRows, weights: PyTree, tokens: Tokens, num_experts: int) -> jax.Array:
    """Rows go to the devices of their experts and come back, as many in a round as they have room
    for."""
    devices = jax.lax.axis_size(AXIS)
    own = num_experts // devices
    room = _room(tokens, own)

    def of_round(number: jax.Array | int, counts: jax.Array, operands: tuple) -> jax.Array:
        weights, x, gates = operands
        pieces, counts = pieces_of_round(counts, number, room)
        # Kept where products are, or gradients would send it again.
        received = checkpoint_name(send_rows(x, pieces, room), "projection")
        gates = send_rows(gates, pieces, room)
        counts = counts[:, jax.lax.axis_index(AXIS)].reshape(-1)  # by sender and expert
        expert = experts_of_rows(counts, room)
        expert = jnp.where(expert < len(counts), expert % own, own)
        here, counts = sort_by_expert(expert[:, None], own)
        y = of_rows(weights, Rows(send(received, here), in_slots(gates[:, None], here), counts))
        return return_rows(collect(y, here)[:, 0], pieces, len(x))

    dispatch, counts = sort_by_expert(tokens.experts, num_experts)
    every = jax.lax.all_gather(counts.reshape(devices, own), AXIS)  # [senders, receivers, own]
    sent = (weights, send(tokens.x, dispatch), in_slots(tokens.gates, dispatch))
    rows = jnp.max(jnp.sum(every, axis=(0, 2)))  # that a device receives
    returned = in_rounds(of_round, rows, room, devices * _most(tokens, own), every, sent)
    return checkpoint_name(combine(returned, dispatch), "projection")


def _most(tokens: Tokens, own: int) -> int:
    """Rows of these tokens that a device with `own` experts may have."""
    return len(tokens.x) * min(tokens.experts.shape[1], own)


def _room(tokens: Tokens, own: int) -> int:
    """Rows of a round, where every device of `expert` has as many tokens and `own` experts."""
    return room_of_round(tokens.experts.size, jax.lax.axis_size(AXIS) * _most(tokens, own))


def _of_picks(of_rows: OfRows, weights: PyTree, picks: Picks, num_experts: int) -> jax.Array:
    """Every expert has as many slots of each row, so that what is exchanged has one size."""
    x, places, gates = picks
    length, width = x.shape[1:]
    mesh = jax.sharding.get_abstract_mesh()
    devices = mesh.shape.get(AXIS, 1) if AXIS in mesh.manual_axes else 1

    def swapped(rows: jax.Array, there: bool) -> jax.Array:
        if devices == 1:
            return rows
        split, joined = (0, 1) if there else (1, 0)
        return jax.lax.all_to_all(rows, AXIS, split_axis=split, concat_axis=joined, tiled=True)

    # [experts, batch, slots, d_model], kept where products are, or gradients would send it again.
    rows = swapped(take_places(x, places).swapaxes(0, 1), there=True)
    rows = checkpoint_name(rows, "projection")
    gates = jnp.take_along_axis(gates, jnp.maximum(places, 0), axis=2)
    gates = swapped(jnp.where(places < 0, 0.0, gates).swapaxes(0, 1), there=True)
    counts = jnp.full(len(rows), rows[0].size // width, jnp.int32)
    y = of_rows(weights, Rows(rows.reshape(-1, width), gates.reshape(-1), counts))
    returned = swapped(y.reshape(rows.shape), there=False).swapaxes(0, 1)
    return checkpoint_name(put_places(returned, places, length), "projection")


def _whole(weight: jax.Array, places: PartitionSpec, dtype: Any) -> jax.Array:
    """A weight's part, gathered over `fsdp` in the activations' type."""
    for axis, place in enumerate(places):
        if "fsdp" in (place if isinstance(place, tuple) else (place,)):
            return gather(weight.astype(dtype), axis, ("fsdp",))
    return weight


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def once(x: jax.Array) -> jax.Array:
    """x, which is to be added once, in a function whose results are added up over `tensor`."""
    if "tensor" not in jax.sharding.get_abstract_mesh().manual_axes:
        return x
    return jnp.where(jax.lax.axis_index("tensor") == 0, x, 0)
