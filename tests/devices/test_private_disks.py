"""Four processes with a home folder each, whose text and token store are in a bucket."""

import signal
import subprocess
from pathlib import Path

import gcsfs
import numpy as np
import pytest

from jaxformer.cli import main
from jaxformer.data.shards import block_type, checksums
from jaxformer.train.metrics import read_rows
from tests.data.test_store import write_rows
from tests.devices.test_processes import finish_all, wait_for_rows
from tests.parallel.test_rendezvous import free_port
from tests.runs import (
    assert_same_arrays,
    make_config,
    results,
    saved_arrays,
    start_training,
    write_config,
)

# One worker runs both tests, so that what they compare with is made once.
pytestmark = pytest.mark.xdist_group("private_disks")

COUNT = 4
LENGTH = 1024
STEPS = 12  # less than an epoch


def start(
    config: Path, homes: Path, *overrides: str, peer_timeout: int = 20
) -> list[subprocess.Popen[str]]:
    flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(COUNT)]
    flags += ["--peer-timeout", str(peer_timeout), *overrides]
    started = []
    for index in range(COUNT):
        home = homes / str(index)
        home.mkdir(parents=True, exist_ok=True)
        environment = {"HOME": str(home)}
        words = (*flags, "--process", str(index))
        started.append(start_training(config, *words, environment=environment))
    return started


@pytest.fixture(scope="module")
def config(bucket, tmp_path_factory) -> Path:
    """Of text in the bucket."""
    folder = tmp_path_factory.mktemp("private")
    write_rows(folder / "rows.jsonl", 1900)
    gcsfs.GCSFileSystem().put_file(str(folder / "rows.jsonl"), "runs/text/rows.jsonl")
    config = make_config(
        folder,
        data={
            "source": "jsonl:gs://runs/text/*.jsonl",
            "sequence_length": LENGTH,
            "cache_dir": "~/.cache/jaxformer",
            "validation_fraction": 0.1,
        },
        train={"steps": STEPS, "batch_size": 2 * COUNT, "log_every": 1},
        eval={"every": 6, "batches": None, "sample_tokens": 0},
        checkpoint={"every": 4},
        mesh={"preset": "fsdp"},
    )
    return write_config(config, folder / "config.yaml")


@pytest.fixture(scope="module")
def shared(config) -> Path:
    """The run on a store that lies on a disk of all."""
    run = config.with_name("shared")
    disk = f"data.store_dir={config.with_name('stores')}"
    codes, outputs = finish_all(start(config, config.with_name("homes"), disk, f"run.dir={run}"))
    assert codes == [0] * COUNT, outputs
    return run


STORES = "data.store_dir=gs://runs/stores"


def fetched_bytes(home: Path) -> int:
    """What a process has fetched of token files: the blocks of its cache that are whole."""
    block = block_type("uint16", False)
    copies = [path.read_bytes() for path in (home / ".cache/jaxformer/rows").rglob("*.tokens")]
    sizes = [len(data) // block.itemsize * block.itemsize for data in copies]
    arrays = [np.frombuffer(data[:size], block) for data, size in zip(copies, sizes, strict=True)]
    whole = [np.equal(checksums(array), array["crc"]) for array in arrays]
    return sum(map(np.count_nonzero, whole)) * block.itemsize


def test_the_text_is_tokenised_once_and_each_process_fetches_its_rows_alone(
    config, shared, tmp_path, capfd
) -> None:
    run = tmp_path / "run"
    codes, outputs = finish_all(start(config, tmp_path / "homes", STORES, f"run.dir={run}"))
    assert codes == [0] * COUNT, outputs
    assert sum("tokens in" in output for output in outputs) == 1
    assert results(run) == results(shared)
    assert_same_arrays(saved_arrays(run, STEPS), saved_arrays(shared, STEPS))
    files = gcsfs.GCSFileSystem().find("runs/stores", detail=True)
    size = sum(info["size"] for name, info in files.items() if name.endswith(".tokens"))
    shares = [fetched_bytes(tmp_path / "homes" / str(index)) / size for index in range(COUNT)]
    assert all(0.1 < share <= 1.2 / COUNT for share in shares), shares


def test_after_one_is_killed_the_run_goes_on_as_if_it_had_not_been(
    config, shared, tmp_path
) -> None:
    run = tmp_path / "run"
    started = start(config, tmp_path / "homes", STORES, f"run.dir={run}")
    wait_for_rows(run, 5, started)
    started[2].send_signal(signal.SIGKILL)
    codes, outputs = finish_all(started)
    assert codes == [1, 1, -signal.SIGKILL, 1], outputs
    assert len(read_rows(run / "metrics.jsonl")) < len(read_rows(shared / "metrics.jsonl"))
    codes, outputs = finish_all(start(config, tmp_path / "homes", STORES, f"run.dir={run}"))
    assert codes == [0] * COUNT, outputs
    assert "resumed from" in outputs[0]
    assert results(run) == results(shared)
    assert_same_arrays(saved_arrays(run, STEPS), saved_arrays(shared, STEPS))
    assert main(["eval", str(run), STORES]) == 0
