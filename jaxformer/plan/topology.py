"""TPU slices by their usual names, described well enough to compile for them without a TPU."""

import importlib.util
import math
import os
from dataclasses import dataclass

import jax

from jaxformer.errors import UserError, did_you_mean
from jaxformer.parallel.chips import CHIPS, Chip

# Slices smaller than a cube of 4 × 4 × 4 chips have these shapes.
SMALL_SHAPES = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}


@dataclass(frozen=True)
class Slice:
    """Chips that are joined by links, `shape` of them along each dimension of the torus."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Along which dimensions the last chip is linked to the first: cubes of 4³ are joined into
        rings, and so are the 16 chips of a whole side of a 2D torus."""
        if self.chip.dimensions == 2:
            return tuple(size == 16 for size in self.shape)
        return (all(size % 4 == 0 for size in self.shape),) * 3


def parse_slice(name: str) -> Slice:
    """The slice that a name such as `v5p-128` or `v6e-256` stands for.

    The number counts TensorCores for v4, v5p and v7x, which have two per chip, and chips for v5e
    and v6e. The shape is the most cubic one that is offered.

    Raises:
        UserError: no such generation, or no slice of that size.
    """
    generation, dash, number = name.partition("-")
    if generation not in CHIPS or not dash:
        nearest = did_you_mean(generation, CHIPS)
        raise UserError(
            f"--topology is '{name}'; allowed: GENERATION-NUMBER, such as v5p-128 or v6e-256, with "
            f"a generation of {', '.join(CHIPS)}.{nearest}"
        )
    chip = CHIPS[generation]
    sizes = _offered(chip.dimensions)
    chips = int(number) / chip.cores_per_chip if number.isdecimal() else math.nan
    if chips not in sizes:
        near = sorted(sizes, key=lambda size: abs(size - chips))[:4]
        names = ", ".join(f"{generation}-{size * chip.cores_per_chip}" for size in sorted(near))
        raise UserError(f"--topology is '{name}', which is not offered; sizes near it: {names}")
    return Slice(name, chip, sizes[int(chips)])


def _offered(dimensions: int) -> dict[int, tuple[int, ...]]:
    """The shape of every size: small ones, and in three dimensions all that cubes make up."""
    if dimensions == 2:
        sides = [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
        return {math.prod(shape): shape for shape in sides}
    shapes: dict[int, tuple[int, ...]] = dict(SMALL_SHAPES)
    cubes = range(4, 29, 4)
    for shape in ((a, b, c) for a in cubes for b in cubes for c in cubes if a <= b <= c):
        chips = math.prod(shape)
        if chips not in shapes or sum(shape) < sum(shapes[chips]):
            shapes[chips] = shape
    return shapes


def compile_only_devices(where: Slice, slices: int) -> list[jax.Device]:
    """Devices of `slices` such slices, to lower and compile for; nothing can run on them.

    This process loads the TPU compiler, and computes on its CPU.

    Raises:
        UserError: the TPU compiler is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler is not installed; it needs no TPU and runs on any Linux x86-64 "
            'machine: pip install "jaxformer[tpu]"'
        )
    # The compiler reads these when it is loaded. Without them, it would look for a TPU at the
    # cloud's metadata server, for other hosts, for the kind of this host (any will do: the topology
    # says it), and for a lock that another compilation may hold.
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    options: dict[str, object] = {"num_slices": slices} if slices > 1 else {}
    if where.chip.device_kind == "TPU v4":
        options["chip_config_name"] = "megacore"  # a chip's two TensorCores are one device
    host = (1, 1, 1) if where.chips == 1 else (2, 2, 1)
    wrap = (*where.wrap, False)[:3]
    return list(
        topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{where.chip.compiler_name}:{'x'.join(map(str, where.shape))}",
            chips_per_host_bounds=host,
            wrap=wrap,
            **options,
        ).devices
    )
