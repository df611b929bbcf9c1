"""The device mesh: one device is a mesh of ones."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

from jaxformer.schema import UserError

DATA_AXES = ("data", "fsdp")  # a batch's rows are split over these


def resolve_sizes(sizes: Mapping[str, int], device_count: int) -> dict[str, int]:
    """The size of every mesh axis, with −1 replaced by what the other axes leave.

    Raises:
        UserError: the sizes do not multiply to `device_count`.
    """
    sizes = dict(sizes)
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        if device_count % fixed:
            raise UserError(
                f"mesh.{open_axes[0]} is -1, but the other axes multiply to {fixed}, which does "
                f"not divide the {device_count} {_devices(device_count)} ({_listed(sizes)}); "
                f"choose sizes whose product divides {device_count}"
            )
        sizes[open_axes[0]] = device_count // fixed
    elif fixed != device_count:
        raise UserError(
            f"mesh sizes multiply to {fixed} ({_listed(sizes)}), but there are {device_count} "
            f"{_devices(device_count)}; set one axis, such as mesh.data, to -1 to take the rest"
        )
    return sizes


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes that `sizes` names, sharded by the compiler (Auto axes).

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = resolve_sizes(sizes, len(devices))
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices
    )


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


def _devices(count: int) -> str:
    platform = jax.default_backend()
    return f"{platform} device" if count == 1 else f"{platform} devices"


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())
