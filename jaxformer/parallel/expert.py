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
    Dispatch,
    collect,
    combine,
    experts_of_rows,
    in_slots,
    put_places,
    send,
    sort_by_expert,
    take_places,
)
from jaxformer.parallel.mesh import DATA_AXES
from jaxformer.parallel.own_tokens import gather
from jaxformer.parallel.rules import rows_before_lanes

AXIS = "expert"
PLACES = {"experts": AXIS, "d_model": "fsdp", "d_hidden": "tensor"}

PyTree = Any


class Rows(NamedTuple):
    """Rows in the order of the experts, and how many each expert has."""

    x: jax.Array  # [rows, d_model]
    gates: jax.Array  # [rows]
    counts: jax.Array  # [experts] int32


# (the experts' weights, rows) → gate · E(x) [rows, d_model]
OfRows = Callable[[PyTree, Rows], jax.Array]
OfOwnRows = Callable[[Rows], jax.Array]  # the same, of a device's own weights


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
    `exchange`: `all_to_all` sends rows twice, there and back, and reserves room for all tokens of a
    device at every other one. Where experts choose, the rows that they take are sent so.

    Args:
        weights: of all experts, arrays that begin with [experts].
        axes: the logical axes of the weights, a tree of PartitionSpecs.

    Returns:
        shaped like x.
    """
    split = _split_axes(len(tokens.x), (*DATA_AXES, "tensor"))
    visit = _way(tokens, split.get(AXIS, 1))
    if not split:
        return visit(partial(of_rows, weights), tokens, num_experts)

    def place(names: PartitionSpec, weight: jax.Array) -> PartitionSpec:
        found = (PLACES.get(name) for name in names)
        spec = PartitionSpec(*(axis if axis in split else None for axis in found))
        return rows_before_lanes(names, spec, weight.shape, split)

    places = jax.tree.map(place, axes, weights, is_leaf=_is_spec)

    def of_shard(weights: PyTree, tokens: Tokens | Picks) -> jax.Array:
        whole = partial(_whole, dtype=tokens.x.dtype)
        weights = jax.tree.map(whole, weights, places, is_leaf=_is_spec)
        y = visit(partial(of_rows, weights), tokens, num_experts)
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


def _of_own(of_rows: OfOwnRows, tokens: Tokens, num_experts: int) -> jax.Array:
    dispatch, counts = sort_by_expert(tokens.experts, num_experts)
    rows = Rows(send(tokens.x, dispatch), in_slots(tokens.gates, dispatch), counts)
    return checkpoint_name(combine(of_rows(rows), dispatch), "projection")


def _of_ring(of_rows: OfOwnRows, tokens: Tokens, num_experts: int) -> jax.Array:
    """Every device sees all tokens, computes its own experts' share, and the shares are added."""
    own = num_experts // jax.lax.axis_size(AXIS)
    every = jax.tree.map(partial(jax.lax.all_gather, axis_name=AXIS, axis=0, tiled=True), tokens)
    local = every.experts - own * jax.lax.axis_index(AXIS)
    local = jnp.where((local >= 0) & (local < own), local, own)
    shares = _of_own(of_rows, every._replace(experts=local), own)
    return jax.lax.psum_scatter(shares, AXIS, scatter_dimension=0, tiled=True)


def _of_exchanged(of_rows: OfOwnRows, tokens: Tokens, num_experts: int) -> jax.Array:
    """Rows go to the devices of their experts in pieces of one size, and come back."""
    x, experts, gates = tokens
    devices = jax.lax.axis_size(AXIS)
    own = num_experts // devices
    dispatch, counts = sort_by_expert(experts, num_experts)
    counts = counts.reshape(devices, own)
    room = len(x) * min(experts.shape[1], own)  # of a piece
    pieces = _in_pieces(dispatch, experts // own, jnp.sum(counts, axis=1), room)

    def swapped(rows: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(rows, AXIS, split_axis=0, concat_axis=0, tiled=True)

    # [devices · room, d_model], kept where products are, or gradients would send it again.
    received = checkpoint_name(swapped(send(x, pieces)), "projection")
    weights = swapped(in_slots(gates, pieces))
    of_slot = jax.vmap(partial(experts_of_rows, rows=room))(swapped(counts))
    here, counts = sort_by_expert(of_slot.reshape(-1, 1), own)
    y = of_rows(Rows(send(received, here), in_slots(weights[:, None], here), counts))
    returned = combine(swapped(collect(y, here)[:, 0]), pieces)
    return checkpoint_name(returned, "projection")


def _in_pieces(dispatch: Dispatch, device: jax.Array, sent: jax.Array, room: int) -> Dispatch:
    """Slots [devices · room] for sorted ones, each device's beginning at a multiple of `room`.

    Args:
        device: [tokens, k], of every assignment's expert.
        sent: [devices], how many assignments go to each.
    """
    first = jnp.cumsum(sent) - sent
    place = jnp.arange(room)
    index = jnp.minimum(first[:, None] + place, dispatch.source.size - 1)
    source = jnp.where(place < sent[:, None], dispatch.source[index], -1)
    device = jnp.minimum(device, len(sent) - 1)  # nobody's have no slot
    slot = dispatch.slot + (jnp.arange(len(sent)) * room - first)[device]
    return Dispatch(source.reshape(-1), jnp.where(dispatch.slot < 0, -1, slot))


def _of_picks(of_rows: OfOwnRows, picks: Picks, num_experts: int) -> jax.Array:
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
    weights = jnp.take_along_axis(gates, jnp.maximum(places, 0), axis=2)
    weights = swapped(jnp.where(places < 0, 0.0, weights).swapaxes(0, 1), there=True)
    counts = jnp.full(len(rows), rows[0].size // width, jnp.int32)
    y = of_rows(Rows(rows.reshape(-1, width), weights.reshape(-1), counts))
    returned = swapped(y.reshape(rows.shape), there=False).swapaxes(0, 1)
    return checkpoint_name(put_places(returned, places, length), "projection")


def _whole(weight: jax.Array, places: PartitionSpec, dtype: Any) -> jax.Array:
    """A weight's part, gathered over `fsdp` in the activations' type."""
    for axis, place in enumerate(places):
        if "fsdp" in (place if isinstance(place, tuple) else (place,)):
            return gather(weight.astype(dtype), axis)
    return weight


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def once(x: jax.Array) -> jax.Array:
    """x, which is to be added once, in a function whose results are added up over `tensor`."""
    if "tensor" not in jax.sharding.get_abstract_mesh().manual_axes:
        return x
    return jnp.where(jax.lax.axis_index("tensor") == 0, x, 0)
