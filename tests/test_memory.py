"""How much memory there is."""

import resource
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from jaxformer import memory
from jaxformer.memory import available_memory, device_memory


def test_the_memory_of_a_device_is_its_part_of_the_machine_or_the_allocators_limit() -> None:
    everywhere = sum(device_memory(device) for device in jax.local_devices())
    assert 2**28 < everywhere < 2**50
    accelerator = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 7})
    unknown = SimpleNamespace(platform="gpu", memory_stats=lambda: None)
    assert (device_memory(accelerator), device_memory(unknown)) == (7, None)


def test_what_a_program_holds_already_counts_as_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1000 * jax.local_device_count())
    assert device_memory(jax.devices()[0], held=500) == 1500


def test_the_fullest_device_tells_what_is_allocated_and_a_cpu_tells_nothing() -> None:
    def device(stats: dict[str, int] | None) -> SimpleNamespace:
        return SimpleNamespace(memory_stats=lambda: stats)

    small = device({"bytes_in_use": 5, "peak_bytes_in_use": 6, "bytes_limit": 9})
    large = device({"bytes_in_use": 3, "peak_bytes_in_use": 8, "bytes_limit": 9, "num_allocs": 2})
    assert memory.allocated([small, large, device(None)]) == {
        "memory_bytes": 3,
        "memory_peak_bytes": 8,
        "memory_limit_bytes": 9,
    }
    assert memory.allocated([device({"bytes_in_use": 5})]) == {"memory_bytes": 5}
    assert memory.allocated(jax.local_devices()) == {}


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_the_tightest_control_group_counts_and_unused_pages_of_files_are_free(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own"
    own.write_text("0::/slice/job\n")
    stat = {"memory__stat": "anon 5\ninactive_file 30\n"}
    write(tmp_path / "slice", memory__max="1000", memory__current="800", **stat)
    write(tmp_path / "slice" / "job", memory__max="max", memory__current="800", **stat)
    assert list(memory._control_groups(tmp_path, own)) == [230]


def test_control_groups_of_version_1_are_read(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:cpu,memory:/job\n3:pids:/other\n")
    files = {"memory__limit_in_bytes": "900", "memory__usage_in_bytes": "500"}
    write(tmp_path / "memory" / "job", memory__stat="total_inactive_file 50\n", **files)
    assert list(memory._control_groups(tmp_path, own)) == [450]


def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = (used + 2**20, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    assert available_memory() <= 2**20
