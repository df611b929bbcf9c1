"""How much memory a device has, and whether a compiled program fits into it."""

import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxformer.errors import DoesNotFit
from jaxformer.terminal import in_bytes


def check_fits(
    device: jax.Device, needed: float, what: str, mend: str, *, held: float = 0.0
) -> None:
    """Check that `needed` bytes, of which `held` are already there, fit into a device.

    Raises:
        DoesNotFit: they do not; the message says `what` takes them and how to need fewer (`mend`).
    """
    there = device_memory(device, held)
    if there is not None and needed > there:
        raise DoesNotFit(
            f"{what} {in_bytes(needed)} per device, but a {device.device_kind} device here has "
            f"{in_bytes(there)}; {mend}"
        )


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of a program's arguments, results and temporaries on a device, as compiled; a donated
    argument and the result in its place count once."""
    memory: Any = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def device_memory(device: jax.Device, held: float = 0.0) -> int | None:
    """Bytes available for arrays: the allocator's limit, or a CPU device's share of the machine's
    available memory plus the `held` bytes that are already there; None if neither is known."""
    if device.platform == "cpu":
        return available_memory() // jax.local_device_count("cpu") + int(held)
    stats = device.memory_stats()
    return stats["bytes_limit"] if stats else None


MEMORY_FIELDS = {
    "memory_bytes": "bytes_in_use",
    "memory_peak_bytes": "peak_bytes_in_use",
    "memory_limit_bytes": "bytes_limit",
}


def allocated(devices: Sequence[jax.Device]) -> dict[str, int]:
    """What the allocator of the device that was fullest says: the bytes in use, the most that ever
    were, and the most that can be. Nothing where devices do not tell, as CPUs do not."""
    told = [stats for device in devices if (stats := device.memory_stats())]
    if not told:
        return {}
    fullest = max(told, key=lambda stats: stats.get("peak_bytes_in_use", 0))
    return {name: fullest[key] for name, key in MEMORY_FIELDS.items() if key in fullest}


def available_memory() -> int:
    """Bytes that this process can still allocate: the least that the machine, its control groups
    (such as a container's limit) and its own address-space limit leave."""
    return max(0, min(_machine(), *_control_groups(), *_address_space()))


def _machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _control_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """Bytes that each limited cgroup (version 2 or 1) around this process has left. Inactive pages
    of files are reclaimed first, so they count as free."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names = (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        )
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
        base = root / "memory" if controllers else root
        place = base / path.lstrip("/")
        for group in (place, *place.parents):
            if not group.is_relative_to(base):
                break
            yield from _left(group, *names)


def _left(group: Path, limit: str, used: str, inactive: str) -> Iterator[int]:
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield int(most) - int((group / used).read_text()) + int(stat.get(inactive, 0))
    except OSError:  # the root has no limit, and a container does not see the groups around it
        return


def _address_space() -> Iterator[int]:
    """What `ulimit -v` leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if limit != resource.RLIM_INFINITY and statm.exists():
        yield limit - int(statm.read_text().split()[0]) * resource.getpagesize()
