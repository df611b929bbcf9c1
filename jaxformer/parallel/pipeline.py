"""Layers in stages that work on different micro-batches at once (GPipe: Huang et al., 2018,
arXiv:1811.06965), as one program for all devices (GSPMD: Xu et al., 2021, arXiv:2105.04663)."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxformer.errors import DoesNotFit, UserError
from jaxformer.parallel.mesh import ROWS_OF_STAGE

AXIS = "stage"
MOST_OF_STAGE = 4  # micro-batches per stage that are chosen: the bubble is then below a fifth

PyTree = Any

Keys = dict[str, jax.Array]
OfLayers = Callable[[PyTree, PyTree, Keys], tuple[PyTree, PyTree]]


class Pipeline(NamedTuple):
    """`stages` equal parts of the layers, each working on a different one of `micro_batches`."""

    stages: int
    micro_batches: int

    @property
    def turns(self) -> int:
        """How many turns it takes until the last micro-batch has left the last stage."""
        return self.micro_batches + self.stages - 1

    @property
    def bubble(self) -> float:
        """The share of a stage's turns, and of its FLOPs, that is wasted."""
        return (self.stages - 1) / self.turns

    def __str__(self) -> str:
        return f"{self.stages} stages, {self.micro_batches} micro-batches, bubble {self.bubble:.1%}"


def possible_micro_batches(sizes: Mapping[str, int], rows: int) -> list[int]:
    """The numbers of micro-batches that `rows` can be split into; none on a mesh without stages.

    Every stage stores equally many of them, and each has equally many rows of every shard.
    """
    stages = sizes.get(AXIS, 1)
    of_shard, rest = divmod(rows, math.prod(sizes.get(axis, 1) for axis in ROWS_OF_STAGE))
    if stages == 1 or rest:
        return []
    return [count for count in range(stages, of_shard + 1, stages) if of_shard % count == 0]


def pipeline_of_rows(rows: int, wanted: int | None) -> Pipeline | None:
    """`make_pipeline` on the mesh that is set; None, too, where the rows cannot be split into
    micro-batches."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return make_pipeline(sizes, rows, wanted) if possible_micro_batches(sizes, rows) else None


def make_pipeline(sizes: Mapping[str, int], rows: int, wanted: int | None) -> Pipeline | None:
    """The pipeline of a mesh of these sizes for a batch of `rows`; None where it has no stages.

    Args:
        wanted: micro-batches; None takes as many as the rows can be split into, up to 4 per stage.

    Raises:
        UserError: the rows cannot be split into so many micro-batches, or there are no stages.
    """
    stages = sizes.get(AXIS, 1)
    if stages == 1 and wanted is not None:
        raise UserError(
            f"train.pipeline_micro_batches is {wanted}, but mesh.stage is 1, and without stages "
            f"there is no pipeline; leave it out, or give mesh.stage"
        )
    if stages == 1:
        return None
    possible = possible_micro_batches(sizes, rows)
    if wanted is None and possible:
        return Pipeline(stages, max(n for n in possible if n <= MOST_OF_STAGE * stages))
    if wanted not in possible:
        allowed = ", ".join(map(str, possible)) or "none; change the batch size or the mesh"
        raise UserError(
            f"train.pipeline_micro_batches is {wanted}, but {rows} rows at once over mesh.stage "
            f"{stages} cannot be split into so many; allowed: {allowed}"
        )
    return Pipeline(stages, wanted)


def check_repetitions(stages: int, num_layers: int, pattern_length: int, first: int = 0) -> None:
    """Refuse layers that stages cannot share evenly; so many `first` ones lie below the pattern.

    Raises:
        DoesNotFit: the repetitions of the pattern are not divisible by the stages.
    """
    repetitions = (num_layers - first) // pattern_length
    if repetitions % stages:
        nearest = first + max(stages, round(repetitions / stages) * stages) * pattern_length
        above = f" above {first} first layers" if first else ""
        raise DoesNotFit(
            f"mesh.stage is {stages}, but model.num_layers {num_layers} repeats the pattern of "
            f"{pattern_length}{above} {repetitions} times, which {stages} does not divide; the "
            f"nearest model.num_layers that fits: {nearest}"
        )


def run_stages(
    of_layers: OfLayers, params: PyTree, rows: PyTree, pipeline: Pipeline, keys: Keys
) -> tuple[PyTree, PyTree]:
    """`of_layers(params, rows, keys)` over all layers, which are stacked along the leading axis of
    `params`; every stage holds its own.

    Every stage stores a part of the micro-batches. In a turn, the first stage takes the next one
    from its store, every other stage takes what the stage before it has made, and the last stage
    puts what it makes into its own store; then the stores move by one stage towards the first. So
    the inputs reach the first stage, the outputs end up where the inputs lay, and a stage sends
    only two micro-batches per turn. What a stage makes before its first micro-batch and after its
    last one is thrown away.

    Args:
        of_layers: (layers [n, ...], rows, keys) → (rows, sums): rows of the same shapes, and per
            layer [n, ...] what is to be added up over the micro-batches.
        rows: each [rows, ...].
        keys: random keys by name, of which every stage and micro-batch gets others.
    """
    stages, turns = pipeline.stages, pipeline.turns
    each = pipeline.micro_batches // stages
    layers = jax.tree.map(lambda x: x.reshape(stages, -1, *x.shape[1:]), params)
    store = jax.tree.map(lambda x: _split(x, stages, each), rows)

    def turn(
        carry: tuple[PyTree, PyTree], number: jax.Array
    ) -> tuple[tuple[PyTree, PyTree], PyTree]:
        made, store = carry
        place = number % each
        stored = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, place, axis=1, keepdims=False), store
        )
        calls = number * stages + jnp.arange(stages)
        given = jax.tree.map(_with_first, made, stored)
        # Made here: layers may not use a key that belongs to another mesh than that of stages.
        own = {
            name: jax.vmap(partial(jax.random.fold_in, key))(calls) for name, key in keys.items()
        }
        made, sums = _all_stages(of_layers)(layers, given, own)
        onward = jax.tree.map(lambda old, new: _with_last(_to_previous(old), new), stored, made)
        store = jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, place, axis=1), store, onward
        )
        # Stage s works on micro-batch `number` - s, if there is one.
        begun = number - jnp.arange(stages)
        counts = (begun >= 0) & (begun < pipeline.micro_batches)
        sums = jax.tree.map(lambda x: jnp.where(_along(counts, x), x, 0), sums)
        return (jax.tree.map(_to_next, made), store), sums

    # The bubble computes real rows: what is finite for them is finite in the bubble.
    begin = jax.tree.map(lambda x: x[:, 0], store)
    (_, store), sums = jax.lax.scan(turn, (begin, store), jnp.arange(turns))
    sums = jax.tree.map(lambda x: jnp.sum(x, axis=0).reshape(-1, *x.shape[3:]), sums)
    return jax.tree.map(lambda x: _join(jnp.roll(x, 1 - stages, axis=1)), store), sums


def _all_stages(of_layers: OfLayers) -> OfLayers:
    """`of_layers` of every stage at once: layers [stages, n, ...], rows [stages, rows, ...] and
    keys [stages]."""

    def of_stage(layers: PyTree, rows: PyTree, keys: Keys) -> tuple[PyTree, PyTree]:
        rules = [("batch", ROWS_OF_STAGE), *nn.get_logical_axis_rules()]
        with nn.logical_axis_rules(rules):
            return of_layers(layers, rows, keys)

    def of_own_stage(*stacked: PyTree) -> tuple[PyTree, PyTree]:
        made = of_stage(*jax.tree.map(lambda x: x[0], stacked))
        return jax.tree.map(lambda x: x[None], made)

    if jax.sharding.get_abstract_mesh().shape.get(AXIS, 1) == 1:
        return jax.vmap(of_stage)
    stages = PartitionSpec(AXIS)
    return jax.shard_map(
        of_own_stage, in_specs=stages, out_specs=stages, axis_names={AXIS}, check_vma=False
    )


def _split(x: jax.Array, stages: int, each: int) -> jax.Array:
    """[rows, ...] → [stages, micro-batches / stages, rows of one, ...], where the rows lie."""
    x = x.reshape(stages, -1, each, *x.shape[1:]).swapaxes(1, 2)
    return _constrain(x, AXIS, None, ROWS_OF_STAGE)


def _join(x: jax.Array) -> jax.Array:
    """Undo `_split`."""
    return x.swapaxes(1, 2).reshape(-1, *x.shape[3:])


def _to_next(x: jax.Array) -> jax.Array:
    """x [stages, rows, ...], moved from each stage to the next; the first gets zeros."""
    return _constrain(_pad(x[:-1], (1, 0)), AXIS, ROWS_OF_STAGE)


def _to_previous(x: jax.Array) -> jax.Array:
    return _constrain(_pad(x[1:], (0, 1)), AXIS, ROWS_OF_STAGE)


def _pad(x: jax.Array, stages: tuple[int, int]) -> jax.Array:
    return jnp.pad(x, [stages] + [(0, 0)] * (x.ndim - 1))


def _with_first(x: jax.Array, first: jax.Array) -> jax.Array:
    return jnp.where(_is_stage(0, x), first, x)


def _with_last(x: jax.Array, last: jax.Array) -> jax.Array:
    return jnp.where(_is_stage(len(x) - 1, x), last, x)


def _is_stage(stage: int, x: jax.Array) -> jax.Array:
    return _along(jnp.arange(len(x)) == stage, x)


def _along(of_stages: jax.Array, x: jax.Array) -> jax.Array:
    """[stages], to be combined with x [stages, ...]."""
    return of_stages.reshape(-1, *[1] * (x.ndim - 1))


def _constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
