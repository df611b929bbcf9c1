"""Where each layer's parameters lie, and models of the same layers that lay them out otherwise."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.model.config import ModelConfig


class Place(NamedTuple):
    """Where a layer's parameters lie: under `part`, and there `at` an index of the first axis, if
    the part stacks several repetitions."""

    part: str  # such as stack/groups/layer_0
    at: int | None


def split_path(path: str) -> tuple[str, str]:
    """stack/groups/layer_0/mixer/out → (stack/groups/layer_0, mixer/out)."""
    names = path.split("/")
    end = next(number for number, name in enumerate(names) if name.startswith("layer_")) + 1
    return "/".join(names[:end]), "/".join(names[end:])


def places(model: ModelConfig, paths: Iterable[str]) -> dict[int, Place]:
    """Where each layer lies, by its number from the bottom up."""
    found: dict[int, Place] = {}
    for path in paths:
        layers = model.layers_of_path(path)
        if layers is not None:
            part, _ = split_path(path)
            is_stacked = part.split("/")[-2] == "groups"
            found |= {
                layer: Place(part, index if is_stacked else None)
                for index, layer in enumerate(layers)
            }
    return found


class Move(NamedTuple):
    """The parameter at `path`, stacked of those at the `sources` (path, index), or the one source
    itself, if `is_stacked` is not set."""

    path: str
    sources: tuple[tuple[str, int | None], ...]
    is_stacked: bool


def moves(
    before: Mapping[int, Place], now: Mapping[int, Place], shapes: Mapping[str, tuple[int, ...]]
) -> list[Move]:
    """How a tree is made out of one that lays the same layers out otherwise: one move for each
    parameter that all layers of its part have, in the same shape.

    Args:
        before: where layers lie in the tree that there is.
        now: where they are to lie.
        shapes: those of the tree that there is, by path.
    """
    parts: dict[str, list[Place]] = {}
    is_stacked: dict[str, bool] = {}
    for layer in sorted(now):
        part, index = now[layer]
        parts.setdefault(part, []).append(before[layer])
        is_stacked[part] = index is not None
    of_part: dict[str, list[str]] = {}
    for path in shapes:
        if any(path.startswith(f"{place.part}/") for place in before.values()):
            part, name = split_path(path)
            of_part.setdefault(part, []).append(name)

    def shape(place: Place, name: str) -> tuple[int, ...] | None:
        whole = shapes.get(f"{place.part}/{name}")
        return whole if whole is None or place.at is None else whole[1:]

    found = []
    for part, sources in parts.items():
        for name in of_part[sources[0].part]:
            same = shape(sources[0], name)
            if all(shape(place, name) == same for place in sources):
                taken = tuple((f"{place.part}/{name}", place.at) for place in sources)
                found.append(Move(f"{part}/{name}", taken, is_stacked[part]))
    return found


def moved(found: Sequence[Move], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by path → those that were moved at their new paths, and the others as they are; also
    those of which some layers were moved and others were not."""
    made, taken = {}, Counter[str]()
    indexed = [at for move in found for at, index in move.sources if index is not None]
    whole = {at: leaves[at].shape[0] for at in indexed}
    for path, sources, is_stacked in found:
        each = [leaves[at] if index is None else leaves[at][index] for at, index in sources]
        made[path] = jnp.stack(each) if is_stacked else each[0]
        taken.update(at for at, _ in sources)
    kept = {path: leaf for path, leaf in leaves.items() if taken[path] < whole.get(path, 1)}
    return kept | made


def shardings_before(
    found: Iterable[Move], after: Mapping[str, NamedSharding]
) -> dict[str, NamedSharding]:
    """Where to read arrays that are moved to where `after` says: sharded as they will be then, but
    for their layers."""
    before = dict(after)
    for path, sources, is_stacked in found:
        mesh, spec = after[path].mesh, after[path].spec[1:] if is_stacked else after[path].spec
        for at, index in sources:
            before[at] = NamedSharding(
                mesh, PartitionSpec(*([] if index is None else [None]), *spec)
            )
    return before
