"""The layers over the depth, whose parameters are stacked by repetitions of the pattern."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxformer.model.block import Group
from jaxformer.model.depth.base import Depth, Visit
from jaxformer.model.layer import Layer
from jaxformer.model.mixers import Cache, Mixer, build_mixer
from jaxformer.model.residuals import Number, Stream
from jaxformer.model.rows import EXPERT_LOAD, LayerAux, RowInfo
from jaxformer.parallel.pipeline import Pipeline, pipeline_of_rows, run_stages

PyTree = Any

KEYS = ("dropout", "depth")  # random keys that layers draw from
STACKED = ("groups", "turns")  # parts whose caches are stacked along an axis before the batch

REMAT_POLICIES = {
    "full": None,
    # `attention` is the output of its kernel.
    "dots": jax.checkpoint_policies.save_only_these_names("projection", "attention"),
}


class Stack(Depth):
    """All layers, bottom up: those below the pattern (`first`), whole repetitions of it (`groups`),
    then what remains of it (`tail`).

    On a mesh with stages, `scanned` repetitions without caches run as a pipeline of
    `micro_batches`, see `parallel.pipeline`. Embedding, first, tail and head are outside of it:
    they are sharded by their own rules, the same on every stage, and their rows are split over the
    stages. Rows that do not divide into micro-batches pass through the repetitions one by one.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, rows: RowInfo, caches: dict[str, Cache] | None = None
    ) -> tuple[jax.Array, dict[str, Cache] | None, LayerAux]:
        pipeline, stream = None, self.residual.start(x)
        if self.layout == "scanned" and caches is None and not self.is_initializing():
            pipeline = pipeline_of_rows(len(x), self.micro_batches)
        longer, said, first = {}, [], self.below
        for name, layers, repetitions in self.parts():
            numbers = first_of_each(first, len(layers), repetitions)
            if repetitions is not None and pipeline is not None:
                place = (name, layers, repetitions, numbers)
                stream, aux = self._pipelined(pipeline, *place, stream, rows)
            else:
                part = self._repeated(layers, repetitions, name=name)
                cache = None if caches is None else caches[name]
                stream, (longer[name], aux) = part(stream, cache, rows, numbers)
            first += len(layers) * count_of(repetitions)
            said.append((aux, count_of(repetitions)))
        x = self.residual.last(stream)
        return x, None if caches is None else longer, together(said)

    @nn.nowrap
    def _repeated(
        self, layers: tuple[Layer, ...], repetitions: int | None, **place: str | None
    ) -> nn.Module:
        """`layers`, scanned over `repetitions`, or applied once without a scan if that is None."""
        group = self._lifted(Group, repetitions, (0, nn.broadcast, 0))
        return group(layers, self.residual, self.dims, **place)

    @nn.nowrap
    def _lifted(
        self, group: type[nn.Module], repetitions: int | None, in_axes: tuple
    ) -> Callable[..., nn.Module]:
        """The class `group` with rematerialisation, scanned over `repetitions` if there are any;
        `in_axes` are those of its arguments after the stream."""
        if self.remat != "none":
            group = nn.remat(
                group, policy=REMAT_POLICIES[self.remat], prevent_cse=self.layout == "unrolled"
            )
        if repetitions is not None:
            group = nn.scan(
                group,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True, "depth": True},
                in_axes=in_axes,
                length=repetitions,
                unroll=repetitions if self.layout == "unrolled" else 1,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
        return group

    def _pipelined(
        self,
        pipeline: Pipeline,
        name: str,
        layers: tuple[Layer, ...],
        repetitions: int,
        numbers: Number,
        stream: Stream,
        rows: RowInfo,
    ) -> tuple[Stream, tuple[LayerAux, ...]]:
        stage = self._repeated(layers, repetitions // pipeline.stages, parent=None)
        keys = {name: self.make_rng(name) for name in KEYS if self.has_rng(name)}

        def of_layers(own: tuple, rows: tuple, keys: dict[str, jax.Array]) -> tuple:
            params, numbers = own
            stream, info = rows
            given = (stream, None, info, numbers)
            stream, (_, aux) = stage.apply({"params": params}, *given, rngs=keys)
            return (stream, info), aux

        layers_of_stages = (self.get_variable("params", name), numbers)
        (stream, _), aux = run_stages(of_layers, layers_of_stages, (stream, rows), pipeline, keys)
        return stream, aux

    @property
    def pattern(self) -> tuple[Layer, ...]:
        """The layers that repeat."""
        return self.layers[self.first : self.first + self.pattern_length]

    @nn.nowrap
    def parts(self) -> list[tuple[str, tuple[Layer, ...], int | None]]:
        """(name, layers, how many times they are scanned, or None for no scan), bottom up."""
        pattern = self.pattern
        repetitions, rest = divmod(len(self.layers) - self.first, len(pattern))
        parts: list[tuple[str, tuple[Layer, ...], int | None]] = (
            [(f"group_{index}", pattern, None) for index in range(repetitions)]
            if self.layout == "separate"
            else [("groups", pattern, repetitions)]
        )
        first = [("first", self.layers[: self.first], None)] if self.first else []
        return first + parts + ([("tail", pattern[:rest], None)] if rest else [])

    takes_back = True

    @nn.nowrap
    def take_back(self, kept: dict[str, Any], counts: jax.Array) -> dict[str, Cache]:
        return self._of_mixers(lambda mixer, own: mixer.take_back(own, counts), kept)

    @nn.nowrap
    def undo(
        self, longer: dict[str, Cache], before: dict[str, Cache], counts: jax.Array
    ) -> dict[str, Cache]:
        def undo(mixer: Mixer, longer: Cache, before: Cache) -> Cache:
            return mixer.rewind(longer, counts) if mixer.rewinds else before

        return self._of_mixers(undo, longer, before)

    @nn.nowrap
    def _of_mixers(
        self, function: Callable[..., Cache], *every: dict[str, Any]
    ) -> dict[str, Cache]:
        """`function` of every layer's mixer and its caches, one of each in `every`."""
        found = {}
        for name, layers, repetitions in self.parts():
            of_part: list[Cache] = []
            for layer, *caches in zip(layers, *(each[name] for each in every), strict=True):
                if layer.mixer is None:
                    of_part.append(None)
                    continue
                mixer = build_mixer(layer.mixer, self.dims, layer.positions, parent=None)
                of_layer = partial(function, mixer)
                of_part.append((of_layer if repetitions is None else jax.vmap(of_layer))(*caches))
            found[name] = tuple(of_part)
        return found

    @nn.nowrap
    def visits(self) -> tuple[Visit, ...]:
        return tuple(map(Visit, self.layers))

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike) -> dict[str, Cache]:
        caches = {}
        for name, layers, repetitions in self.parts():
            empty = tuple(
                None
                if layer.mixer is None
                else build_mixer(layer.mixer, self.dims, layer.positions, parent=None).init_cache(
                    batch, max_length, dtype
                )
                for layer in layers
            )
            if repetitions is not None:
                empty = jax.tree.map(partial(_repeat, repetitions), empty)
            caches[name] = empty
        return caches


def count_of(repetitions: int | None) -> int:
    """How many times a part of `Stack.parts` is passed."""
    return 1 if repetitions is None else repetitions


def first_of_each(first: int, length: int, repetitions: int | None) -> Number:
    """The number of the lowest layer of each repetition [repetitions] of `length` layers, of which
    `first` is the lowest; or of the only one."""
    if repetitions is None:
        return first
    return first + length * jnp.arange(repetitions, dtype=jnp.int32)


def together(said: Sequence[tuple[tuple[LayerAux, ...], int]]) -> LayerAux:
    """Combine the aux of each part's layers, [repetitions] or, for one, [] each, and their number
    into that of the stack: losses are summed, and a statistic is [layers] from the bottom up, NaN
    where a layer has none."""
    names = {name for layers, _ in said for layer in layers for name in layer.stats}
    losses = [jnp.sum(aux.loss) for layers, _ in said for aux in layers if aux.loss is not None]
    stats = {
        name: _joined_rows([_in_order(name, *part) for part in said]) for name in sorted(names)
    }
    return LayerAux(stats, sum(losses[1:], losses[0]) if losses else None)


def joined(parts: Sequence[tuple[LayerAux, int]]) -> LayerAux:
    """The aux of parts of so many layers each, bottom up, as that of all layers: a statistic is NaN
    where a part has none."""
    names = sorted({name for aux, _ in parts for name in aux.stats})
    stats = {name: _joined_rows([_of_layers(name, *part) for part in parts]) for name in names}
    losses = [aux.loss for aux, _ in parts if aux.loss is not None]
    exits = [aux.exits for aux, _ in parts if aux.exits is not None]
    total = sum(losses[1:], losses[0]) if losses else None
    return LayerAux(stats, total, exits[0] if exits else None)


def mean_of_turns(aux: LayerAux) -> LayerAux:
    """The aux [turns, ...] of layers that were passed several times, as one: losses are summed,
    statistics averaged."""
    stats = {name: jnp.mean(values, axis=0) for name, values in aux.stats.items()}
    return LayerAux(stats, None if aux.loss is None else jnp.sum(aux.loss))


def _in_order(name: str, layers: tuple[LayerAux, ...], repetitions: int) -> jax.Array:
    """[layers, ...]: every layer's statistic, or NaN."""
    every = [layer.stats.get(name, jnp.nan) for layer in layers]
    if name != EXPERT_LOAD:
        each = [jnp.broadcast_to(x, (repetitions,)) for x in every]
        return jnp.stack(each, axis=-1).reshape(-1)
    widest = max((jnp.shape(x)[-1] for x in every if jnp.ndim(x)), default=1)
    padded = (_padded(jnp.atleast_1d(x), widest) for x in every)
    each = [jnp.broadcast_to(x, (repetitions, widest)) for x in padded]
    return jnp.stack(each, axis=-2).reshape(-1, widest)


def _of_layers(name: str, aux: LayerAux, count: int) -> jax.Array:
    missing = jnp.full((count, 1) if name == EXPERT_LOAD else count, jnp.nan)
    return aux.stats.get(name, missing)


def _joined_rows(parts: Sequence[jax.Array]) -> jax.Array:
    """Parts [layers, ...] one after another, filled up with NaN where others are wider."""
    if parts[0].ndim == 1:
        return jnp.concatenate(parts)
    widest = max(part.shape[1] for part in parts)
    return jnp.concatenate([_padded(part, widest) for part in parts])


def _padded(x: jax.Array, width: int) -> jax.Array:
    missing = [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])]
    return jnp.pad(x, missing, constant_values=jnp.nan)


def _repeat(times: int, leaf: jax.Array) -> jax.Array:
    return jnp.broadcast_to(leaf, (times, *leaf.shape))


def separate_layers(params: dict) -> dict:
    """Parameters of a scanned model → those of its `separate` layout."""
    separate = {}
    for name, value in params.items():
        if name == "groups":
            repetitions = jax.tree.leaves(value)[0].shape[0]
            for index in range(repetitions):
                separate[f"group_{index}"] = jax.tree.map(itemgetter(index), value)
        else:
            separate[name] = separate_layers(value) if isinstance(value, dict) else value
    return separate


def choose_rows(take: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """The caches or streams `new` for the rows where take [batch] is set, `old` for the others."""

    def choose(path: tuple, new: jax.Array, old: jax.Array) -> jax.Array:
        rows = take.reshape(*[1] * (axis := _stacked(path)), -1, *[1] * (new.ndim - 1 - axis))
        return jnp.where(rows, new, old)

    return jax.tree.map_with_path(choose, new, old)


def take_rows(rows: jax.Array, caches: PyTree) -> PyTree:
    """The caches of the rows with these numbers [n], in their order."""
    return jax.tree.map_with_path(
        lambda path, cache: jnp.take(cache, rows, axis=_stacked(path)), caches
    )


def _stacked(path: tuple) -> int:
    """How many axes a cache at `path` has before the batch."""
    return sum(getattr(key, "key", None) in STACKED for key in path)
