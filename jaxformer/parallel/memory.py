"""How much memory a device has."""

import os

import jax


def device_memory(device: jax.Device) -> int | None:
    """Bytes for arrays: the allocator's limit, or a CPU device's part of the machine's memory;
    None where neither is known."""
    if device.platform == "cpu":
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return machine // jax.local_device_count("cpu")
    stats = device.memory_stats()
    return stats["bytes_limit"] if stats else None
