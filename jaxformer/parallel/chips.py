"""What a chip of each TPU generation can do."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """What a generation can do. The figures are of one JAX device: a chip, or half of one for v7x,
    which shows its two TensorCores as a device each.

    Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, section "System architecture". The
    bandwidths of links are a chip's published interconnect bandwidth divided over its links, 4 in
    a 2D torus and 6 in a 3D torus; the bandwidth between slices is the one published for a chip.
    """

    compiler_name: str
    device_kind: str
    dimensions: int  # of the torus
    cores_per_chip: int  # where names count TensorCores, 1 where they count chips
    devices_per_chip: int
    peak_flops: float  # bfloat16, FLOP/s
    flops_per_cycle: int  # all matrix units: units × side² × 2
    memory: int  # bytes of HBM
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s of one link, one way
    slice_bandwidth: float  # bytes/s between slices, one way

    @property
    def clock(self) -> float:
        """Cycles per second of the matrix units."""
        return self.peak_flops / self.flops_per_cycle


CHIPS = {
    "v4": Chip(
        compiler_name="v4",
        device_kind="TPU v4",
        dimensions=3,
        cores_per_chip=2,
        devices_per_chip=1,
        peak_flops=275e12,
        flops_per_cycle=2 * 4 * 128**2 * 2,
        memory=32 * GIB,
        memory_bandwidth=1228e9,
        link_bandwidth=50e9,
        slice_bandwidth=6.25e9,
    ),
    "v5e": Chip(
        compiler_name="v5e",
        device_kind="TPU v5 lite",
        dimensions=2,
        cores_per_chip=1,
        devices_per_chip=1,
        peak_flops=197e12,
        flops_per_cycle=4 * 128**2 * 2,
        memory=16 * GIB,
        memory_bandwidth=819e9,
        link_bandwidth=50e9,
        slice_bandwidth=3.125e9,
    ),
    "v5p": Chip(
        compiler_name="v5",
        device_kind="TPU v5",
        dimensions=3,
        cores_per_chip=2,
        devices_per_chip=1,
        peak_flops=459e12,
        flops_per_cycle=2 * 4 * 128**2 * 2,
        memory=95 * GIB,
        memory_bandwidth=2765e9,
        link_bandwidth=100e9,
        slice_bandwidth=6.25e9,
    ),
    "v6e": Chip(
        compiler_name="v6e",
        device_kind="TPU v6 lite",
        dimensions=2,
        cores_per_chip=1,
        devices_per_chip=1,
        peak_flops=918e12,
        flops_per_cycle=4 * 256**2 * 2,
        memory=32 * GIB,
        memory_bandwidth=1638e9,
        link_bandwidth=100e9,
        slice_bandwidth=12.5e9,
    ),
    "v7x": Chip(
        compiler_name="tpu7x",
        device_kind="TPU7x",
        dimensions=3,
        cores_per_chip=2,
        devices_per_chip=2,
        peak_flops=2307e12 / 2,
        flops_per_cycle=4 * 256**2 * 2,
        memory=192 * GIB // 2,
        memory_bandwidth=7380e9 / 2,
        link_bandwidth=100e9 / 2,
        slice_bandwidth=12.5e9 / 2,
    ),
}
