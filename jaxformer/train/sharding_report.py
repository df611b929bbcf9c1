"""A table of what every device holds of the parameters."""

from typing import Any

import jax

from jaxformer.parallel.rules import Rules, bytes_per_device, parts_of, path_name
from jaxformer.terminal import in_bytes

LARGE = 64 * 2**20  # bytes of a parameter that should not lie whole on every device

PyTree = Any


def sharding_report(params: PyTree, vocab_size: int, rules: Rules) -> str:
    """A line for each parameter, and a complaint about large ones that no axis splits, and about a
    vocabulary that its axes do not divide.

    Args:
        params: arrays or ShapeDtypeStructs that say where they lie.
        rules: the table that placed them.
    """
    rows, whole = [("parameter", "shape", "over", "a device has")], []
    leaves = jax.tree.flatten_with_path(params)[0]
    for path, leaf in leaves:
        held = bytes_per_device(leaf, leaf.sharding)
        name, spec = path_name(path), _spec(leaf.sharding)
        rows.append((name, str(list(leaf.shape)), spec, in_bytes(held)))
        if leaf.sharding.num_devices > 1 and held == leaf.size * leaf.dtype.itemsize >= LARGE:
            whole.append(f"{name} ({in_bytes(held)})")
    total = bytes_per_device(params, jax.tree.map(lambda leaf: leaf.sharding, params))
    rows.append(("in all", "", "", in_bytes(total)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[3].rjust(12)]) for row in rows]
    if whole:
        lines.append(
            f"large parameters lie whole on every device: {', '.join(whole)}; mesh.preset=fsdp, or "
            "mesh.rules, splits them"
        )
    axes = dict(rules)["vocab"]
    parts = parts_of(leaves[0][1].sharding.mesh.shape, axes)
    if vocab_size % parts:
        named = axes if isinstance(axes, str) else " × ".join(axes or ())
        padded = -(-vocab_size // parts) * parts
        lines.append(
            f"the vocabulary of {vocab_size:,} is not divisible by mesh {named} = {parts}: its "
            f"parameters are not split over it, and only the step pads the head, to {padded:,}; "
            f"model.vocab_size={padded} in a new run splits them too"
        )
    return "\n".join(lines)


def _spec(sharding: jax.sharding.NamedSharding) -> str:
    """Mesh axes of each dimension; axes of size 1 are left out."""
    parts = []
    for axes in sharding.spec:
        axes = (axes,) if isinstance(axes, str) else axes or ()
        split = [axis for axis in axes if sharding.mesh.shape[axis] > 1]
        parts.append("×".join(split) or "-")
    return " ".join(parts)
