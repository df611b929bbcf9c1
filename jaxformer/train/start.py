"""How a run begins: from its own newest checkpoint, from another run's weights, or from scratch."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from jaxformer.checkpoint.lineage import record_start
from jaxformer.checkpoint.local_copies import LocalCopies
from jaxformer.checkpoint.lora import fingerprint
from jaxformer.checkpoint.manager import Checkpoints, Json
from jaxformer.checkpoint.manifest import Description, check_same_tree, describe
from jaxformer.checkpoint.own_copies import keep_copies
from jaxformer.checkpoint.run_directory import RunDirectory, flat
from jaxformer.checkpoint.weights import Weights, abstract_leaves, find_weights
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import UserError
from jaxformer.model.accounting import abstract_parameters
from jaxformer.model.layer_places import Move, moved, moves, places, shardings_before
from jaxformer.model.parameter_paths import by_path, from_paths, matching, split
from jaxformer.model.position_grids import Resizing, resized, resizings
from jaxformer.parallel import processes
from jaxformer.parallel.rules import logical_axes, replicated
from jaxformer.paths import is_remote
from jaxformer.train.kept_state import KeptState, find_state
from jaxformer.train.preflight import check_same_data
from jaxformer.train.program import Program, restored, trees, weights
from jaxformer.train.reference import load_reference
from jaxformer.train.step import TrainState

PyTree = Any


@dataclass(frozen=True)
class Start:
    """Weights of another run, and which of them are taken."""

    source: Weights
    wanted: PyTree  # all of the source's, as ShapeDtypeStructs with shardings
    moves: tuple[Move, ...]  # from where the source has layers to where the new run has them
    resizings: dict[str, Resizing]  # of positions, by path after the moves
    shardings: dict[str, NamedSharding]  # after the moves, by path
    taken: frozenset[str]  # paths after the moves
    count: int  # of all numbers in them
    notes: tuple[str, ...]  # a line for each parameter not taken whole, and for what else differs

    @property
    def item(self) -> str:
        return self.source.item

    @property
    def what(self) -> str:
        average = ", its moving average" if self.item == "ema" else ""
        return f"{average}: {self.count:,} parameters are taken"

    def state(self, program: Program) -> tuple[TrainState, str]:
        """The state before the first step, and the fingerprint of the weights that were saved."""
        params, stored = self.source.restore(self.wanted)
        seen = fingerprint(stored)  # now: the parameters are used up
        if self.moves or self.resizings:
            brought = partial(_brought, self.moves, self.resizings)
            bring = jax.jit(brought, out_shardings=self.shardings)
            params = from_paths(bring(by_path(params)))
        return program.initial_state(split(params, self.taken)[0]), seen


def find_start(program: Program) -> Start | KeptState | None:
    """What `init.from` names, compared with what the run needs; no array is read yet. None if it is
    not set.

    Raises:
        UserError: it is not a run or checkpoint; a pattern of init.partial matches no parameter; or
            parameters that no pattern matches differ, listed path by path, or by the numbers of
            layers. See also `find_state`.
    """
    init = program.config.init
    if init.source is None:
        return None
    source = find_weights(init.source)
    if init.state == "optimizer":
        kept, changed = find_state(source, program), _changed_keys(source, program)
        return replace(kept, notes=(*kept.notes, *changed))
    adapts = program.config.lora is not None
    leaves = by_path(program.abstract.base if adapts else weights(program.abstract))
    saved, ours = source.description(), describe(leaves)
    # A run with adapters reads what they adapt again, as it was saved.
    changes = () if adapts else _layer_moves(source, saved, program, ours)
    grids = {} if adapts else resizings(source.config.model, program.config.model)
    stored = abstract_leaves(saved, replicated(program.mesh))
    laid_out = jax.eval_shape(partial(_brought, changes, grids), stored)
    theirs = describe(laid_out)
    differing = matching(init.partial, theirs.keys() | ours.keys(), "init.partial")
    _check_same_layers(source, program, (theirs.keys() | ours.keys()) - differing)
    check_same_tree(
        "parameters",
        source.where,
        {path: leaf for path, leaf in theirs.items() if path not in differing},
        {path: leaf for path, leaf in leaves.items() if path not in differing},
        mend="fix the configuration, or name what is to start fresh of these: init.partial=[PATH]",
    )
    grown = _grown(program, theirs, ours) & differing if differing else set()
    taken = frozenset((ours.keys() - differing) | grown)
    same = {path: leaf for path, leaf in leaves.items() if theirs.get(path) == ours[path]}
    shardings = {path: replicated(program.mesh) for path in theirs}
    shardings |= {path: leaf.sharding for path, leaf in same.items()}
    before = shardings_before(changes, shardings)
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=before[path])
        for path, leaf in stored.items()
    }
    return Start(
        source,
        from_paths(wanted),
        changes,
        grids,
        shardings,
        taken,
        sum(math.prod(laid_out[path].shape) for path in taken),
        (
            *(f"resized: {path}, of {each}" for path, each in grids.items() if path in taken),
            *(_note(path, theirs, ours, path in grown) for path in sorted(differing)),
            *_changed_keys(source, program),
        ),
    )


def _brought(
    moves: Sequence[Move], grids: Mapping[str, Resizing], leaves: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The source's arrays by path, as the new run has them."""
    return resized(grids, moved(moves, leaves))


def _layer_moves(
    source: Weights, saved: Description, program: Program, ours: Description
) -> tuple[Move, ...]:
    """Empty if the layers lie in the same places, or if there are more or fewer of them."""
    before = places(source.config.model, saved)
    now = places(program.config.model, ours)
    if before == now or before.keys() != now.keys():
        return ()
    return tuple(moves(before, now, {path: leaf["shape"] for path, leaf in saved.items()}))


def _check_same_layers(source: Weights, program: Program, paths: Iterable[str]) -> None:
    """That models of which `paths` are to agree have as many layers, if some are in layers."""
    before, now = source.config.model, program.config.model
    in_layers = any(
        model.layers_of_path(path) is not None for path in paths for model in (before, now)
    )
    if in_layers and before.num_layers != now.num_layers:
        raise UserError(
            f"{source.where} has {before.num_layers} layers, but model.num_layers is "
            f"{now.num_layers}, and layers are taken by their numbers; give "
            f"model.num_layers={before.num_layers}, or start all layers fresh: "
            f"init.partial=[stack/*]"
        )


def _changed_keys(source: Weights, program: Program) -> list[str]:
    """A line for every key of the model that differs, other than vocab_size and init."""
    told = {"init", "vocab_size"}
    models = (source.config.model, program.config.model)
    before, now = (flat(each.model_dump(mode="json", exclude=told)) for each in models)
    return [
        f"model.{key} was {before.get(key)} and is {now.get(key)} now"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]


def _grown(program: Program, theirs: Description, ours: Description) -> set[str]:
    """The parameters that differ in nothing but a larger vocabulary."""
    axes = by_path(logical_axes(abstract_parameters(program.model)))

    def only_vocabulary(path: str) -> bool:
        before, now = theirs[path]["shape"], ours[path]["shape"]
        if "vocab" not in axes[path] or len(before) != len(now):
            return False
        at = tuple(axes[path]).index("vocab")
        return now[at] > before[at] and now == [*before[:at], now[at], *before[at + 1 :]]

    return {path for path in theirs.keys() & ours.keys() if only_vocabulary(path)}


def _note(path: str, theirs: Description, ours: Description, grown: bool) -> str:
    if path not in ours:
        return f"not taken: {path} {theirs[path]['shape']}"
    if not grown:
        return f"fresh: {path} {ours[path]['shape']}"
    before, now = theirs[path]["shape"], ours[path]["shape"]
    return f"taken in part: {path} {before}; the rest of {now} starts fresh"


def first_state(
    directory: RunDirectory,
    checkpoints: Checkpoints,
    program: Program,
    manifest: Json,
    other: Start | KeptState | None,
    teacher: Weights | None,
    tokenizer: Tokenizer,
    copies: LocalCopies | None,
    say: Callable[[str], None],
) -> tuple[TrainState, Json, Json]:
    """The state from which the run starts or resumes, how far the run was then (see `Checkpoints`),
    and the manifest with the origin of the weights.

    A run starts from its own newest good checkpoint, or from a newer state of which its hosts have
    local copies; or else from `other` weights (init.from), as far as they are taken (init.partial),
    with the optimizer's state if that is kept (init.state); or else from scratch. What it needs of
    other runs is copied into its directory.

    Raises:
        UserError: other text or another tokenizer than the checkpoint's; weights of other runs that
            are gone or have changed.
    """
    resumed, done = checkpoints.newest_good(), {"step": 0}
    saved: Json = {} if resumed is None else checkpoints.manifest(resumed)
    if resumed is not None:
        check_same_data(program.config, saved, manifest)
        origin = saved.get("init")
        own = Weights(directory, checkpoints, resumed, program.config, saved)
        under = own.base if program.config.lora else None
        base = own.restore_base(program.abstract.base) if under else None
        wanted = trees(program.abstract)
        newer = copies.newest(resumed, manifest, wanted) if copies else None
        if newer is None:
            arrays, done = checkpoints.restore(resumed, wanted), checkpoints.state(resumed)
            say(f"resumed from {own.where}")
        else:
            arrays, done = newer.arrays, newer.progress
            say(f"resumed from the local copies of step {newer.step:,}")
        state = restored(program, arrays, done, base)
    elif other is not None:
        state, origin = begin(other, program)
        under = other.source if program.config.lora else None
        say(tell(other, tokenizer))
    else:
        state, origin, under = program.initial_state(), None, None
    reference, told = load_reference(teacher, program.abstract.reference, saved.get("reference"))
    manifest = {**manifest, "init": origin, "reference": told}
    processes.first_alone("copies", lambda: keep_copies(directory, tokenizer, under, teacher))
    processes.first_alone("manifest", lambda: directory.write_manifest(manifest))
    if copies:
        copies.begin(done["step"])
    else:
        record_start(directory.path, done["step"])
    return state.replace(reference=reference), done, manifest


def begin(start: Start | KeptState, program: Program) -> tuple[TrainState, Json]:
    """The state before the first step, and what the manifest says of where it comes from."""
    state, seen = start.state(program)
    origin = {
        "from": _absolute(start.source.directory.path),
        "step": start.source.step,
        "item": start.item,
        "fingerprint": seen,
    }
    return state, origin


def _absolute(path: Path) -> str:
    return str(path if is_remote(path) else path.absolute())


def tell(start: Start | KeptState, tokenizer: Tokenizer) -> str:
    """What was taken and what was not, and from where."""
    source = start.source
    text = f"starts from {source.where}{start.what}"
    saved = source.manifest["tokenizer"]
    notes = list(start.notes)
    if saved["fingerprint"] != tokenizer.fingerprint:
        notes.append(
            f"the tokenizer was {saved['name']} and is {tokenizer.name} now: an id keeps its row "
            f"of the embedding, even if it now means another token"
        )
    return "\n  ".join([text, *notes])
