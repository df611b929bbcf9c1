"""The device mesh: one device is a mesh of ones."""

import math
import os
from collections.abc import Mapping, Sequence

import jax
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh

from jaxformer.errors import UserError, did_you_mean

AXES = ("data", "stage", "fsdp", "expert", "tensor", "context")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
ROWS_OF_STAGE = ("data", "fsdp", "expert")  # a micro-batch's rows are split over these
DATA_AXES = ("stage", *ROWS_OF_STAGE)  # and a batch's over all these


def find_devices() -> list[jax.Device]:
    """All devices, of every process.

    Raises:
        UserError: the platform that `JAX_PLATFORMS` names is not there, or another process uses it.
    """
    try:
        return jax.devices()
    # JAX raises an AssertionError for a platform that it knows but has no plugin for.
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        if not asked:
            raise UserError(f"JAX finds no device: {error}") from error
        reason = str(error).partition(". (set JAX")[0] or "its plugin is not installed"
        raise UserError(
            f"JAX_PLATFORMS is '{asked}', which JAX cannot use here: {reason}. Allowed: "
            f"{', '.join(PLATFORMS)}, as far as they are installed (pip install 'jaxformer[cuda]' "
            f"or 'jaxformer[tpu]'); without JAX_PLATFORMS, JAX takes the best that is there."
            f"{'' if asked in PLATFORMS else did_you_mean(asked, PLATFORMS)}"
        ) from error


def preset_sizes(preset: str, devices: Sequence[jax.Device]) -> dict[str, int]:
    """The sizes that a preset gives to axes which the configuration leaves open.

    `ddp` copies the parameters to all devices and splits rows; `fsdp` splits parameters as well;
    `fsdp_tensor` also splits heads and hidden widths over the devices of a host; `hsdp` copies the
    parameters to every slice (every host, where there is one slice) and splits them inside it.
    """
    hosts = len({device.process_index for device in devices})
    slices = count_slices(devices)
    return {
        "ddp": {"data": -1},
        "fsdp": {"data": slices, "fsdp": -1},
        "fsdp_tensor": {"data": slices, "fsdp": -1, "tensor": len(devices) // hosts},
        "hsdp": {"data": slices if slices > 1 else hosts, "fsdp": -1},
    }[preset]


def count_slices(devices: Sequence[jax.Device]) -> int:
    """How many slices the devices form: groups that only the slow network joins."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def resolve_sizes(sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> dict[str, int]:
    """The size of every mesh axis, with −1 replaced by what the other axes leave.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    sizes, count = dict(sizes), len(devices)
    named = f"{count} {devices[0].device_kind} {'device' if count == 1 else 'devices'}"
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        if count % fixed:
            raise UserError(
                f"mesh.{open_axes[0]} is -1, but the other axes multiply to {fixed}, which does "
                f"not divide the {named} ({_listed(sizes)}); choose sizes whose product divides "
                f"{count}"
            )
        sizes[open_axes[0]] = count // fixed
    elif fixed != count:
        there = "is" if count == 1 else "are"
        raise UserError(
            f"mesh sizes multiply to {fixed} ({_listed(sizes)}), but there {there} {named}; "
            f"{_settings_for(count, sizes)} would do"
        )
    return sizes


def _settings_for(count: int, sizes: Mapping[str, int]) -> str:
    """Overrides of `sizes`, as few as can be, with which they multiply to `count`."""
    for axis, size in sizes.items():
        if count % (math.prod(sizes.values()) // size) == 0:
            return f"mesh.{axis}=-1"
    ones = (f" mesh.{axis}=1" for axis, size in sizes.items() if size > 1 and axis != "data")
    return "mesh.data=-1" + "".join(ones)


def make_mesh(
    sizes: Mapping[str, int | None],
    preset: str = "ddp",
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh of all `AXES`, sharded by the compiler (Auto axes).

    With several slices, `data` is outermost, so the slow network carries nothing but its sums.

    Args:
        sizes: of each axis, with at most one −1; None takes the preset's size, or else 1.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or the slices do not divide
            `data`, or there are no devices.
    """
    devices = find_devices() if devices is None else devices
    given = {axis: size for axis, size in sizes.items() if size is not None}
    preset_gives = preset_sizes(preset, devices)
    if -1 in given.values():
        preset_gives = {axis: size for axis, size in preset_gives.items() if size != -1}
    wanted = dict.fromkeys(AXES, 1) | preset_gives | given
    resolved = resolve_sizes(wanted, devices)
    shape, axes, types = tuple(resolved.values()), AXES, (AxisType.Auto,) * len(AXES)
    slices = count_slices(devices)
    if slices == 1:
        try:
            return jax.make_mesh(shape, axes, types, devices=devices)
        except NotImplementedError as error:  # from JAX, for an axis that does not fit the torus
            raise UserError(
                f"the mesh {_listed(resolved)} does not fit the torus of the {len(devices)} "
                f"{devices[0].device_kind} devices: each size must be a product of its sides "
                f"({error})"
            ) from None
    if resolved["data"] % slices:
        raise UserError(
            f"mesh.data is {resolved['data']} ({_listed(resolved)}), not divisible by the {slices} "
            f"slices, which only data may span; mesh.preset=hsdp chooses data {slices}"
        )
    within = (resolved["data"] // slices, *shape[1:])
    across = (slices, *(1 for _ in shape[1:]))
    return Mesh(create_hybrid_device_mesh(within, across, devices), axes, axis_types=types)


def data_shards(sizes: Mapping[str, int]) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(sizes[axis] for axis in DATA_AXES)


def check_rows(sizes: Mapping[str, int], rows: int, accumulation: int, key: str) -> None:
    """Refuse a batch whose micro-batches the mesh cannot split evenly.

    Raises:
        UserError: `rows` is not divisible by data shards × accumulation.
    """
    shards = data_shards(sizes)
    parts = shards * accumulation
    if rows % parts:
        micro = f" × train.accumulation {accumulation}" if accumulation > 1 else ""
        nearest = max(parts, round(rows / parts) * parts)
        raise UserError(
            f"{key} is {rows}, not divisible by {parts} (data shards {shards}{micro}; the mesh is "
            f"{_listed(sizes)}); the nearest size that is: {nearest}"
        )


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())
