"""Real processes, each with a disk of its own, that lose one of them between two checkpoints."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jaxformer.config import Config
from tests.checkpoint.test_manager import flip
from tests.parallel.test_rendezvous import free_port
from tests.runs import (
    assert_same_arrays,
    finish,
    make_config,
    results,
    saved_arrays,
    start_training,
    write_config,
)

STEPS, EVERY = 200, 10


class Hosts:
    """Processes of one run, whose home directories stand for the disks of as many hosts."""

    def __init__(self, folder: Path, *mesh: str, count: int = 2, steps: int = STEPS) -> None:
        self.folder, self.run = folder, folder / "run"
        self.mesh, self.count, self.steps = mesh, count, steps
        self.config = write_config(self.configuration(), folder / "config.yaml")

    def configuration(self) -> Config:
        return make_config(
            self.folder,
            train={"steps": self.steps, "log_every": 3},
            eval={"every": 100},
            checkpoint={"every": 1000, "local": "~/copies", "local_every": EVERY},
        )

    def home(self, process: int) -> Path:
        return self.folder / f"host_{process}"

    def start(self, *overrides: str) -> list[subprocess.Popen[str]]:
        flags = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes"]
        flags += [str(self.count), "--peer-timeout", "5", *self.mesh, *overrides]
        started = []
        for process in range(self.count):
            self.home(process).mkdir(exist_ok=True)
            home = {"HOME": str(self.home(process))}
            place = ["--process", str(process)]
            started.append(start_training(self.config, *flags, *place, environment=home))
        return started

    def finish(self, *overrides: str) -> list[str]:
        """Start, let it end, and return the outputs."""
        ended = [finish(process, timeout=300) for process in self.start(*overrides)]
        assert [code for code, _ in ended] == [0] * self.count, ended
        return [output for _, output in ended]

    def copies(self, process: int) -> dict[int, Path]:
        """The steps that are on the process's disk."""
        found = (self.home(process) / "copies").glob(f"*/process_{process}/*")
        return {int(each.name): each for each in found if each.name.isdecimal()}

    def all_have(self) -> int:
        """The newest step of which all have a copy."""
        steps = (self.copies(process).keys() for process in range(self.count))
        return max(set.intersection(*map(set, steps)), default=0)

    def lose_process_1(self, *overrides: str, at: int) -> None:
        """kill -9, once all have a copy of step `at`."""
        started = self.start(*overrides)
        deadline = time.monotonic() + 120
        while self.all_have() < at:
            assert all(process.poll() is None for process in started), finish(started[0])
            assert time.monotonic() < deadline
            time.sleep(0.005)
        started[1].kill()
        codes = [finish(process)[0] for process in started]
        assert codes == [1, -signal.SIGKILL, *[1] * (self.count - 2)]
        assert [each.name for each in (self.run / "checkpoints").iterdir()] == [str(EVERY)]
        assert self.all_have() < self.steps


def assert_as_if_left_alone(hosts: Hosts, alone: Hosts) -> None:
    assert results(hosts.run) == results(alone.run)
    ours, theirs = (saved_arrays(each.run, each.steps) for each in (hosts, alone))
    assert_same_arrays(ours, theirs)


@pytest.fixture(scope="module")
def replicated(tmp_path_factory) -> Hosts:
    """An uninterrupted run in which both processes hold the same."""
    hosts = Hosts(tmp_path_factory.mktemp("replicated"))
    hosts.finish()
    return hosts


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Hosts:
    """An uninterrupted run in which each process holds a half."""
    hosts = Hosts(tmp_path_factory.mktemp("split"), "mesh.fsdp=2", "mesh.data=1")
    hosts.finish()
    return hosts


def test_a_replaced_host_gets_its_part_from_a_replica_twice(replicated, tmp_path):
    assert replicated.copies(0) == replicated.copies(1) == {}  # a finished run needs none
    hosts, newest = Hosts(tmp_path), []
    for at in (3 * EVERY, 8 * EVERY):
        hosts.lose_process_1(at=at)
        shutil.rmtree(hosts.home(1))
        newest.append(max(hosts.copies(0)))
    outputs = hosts.finish()
    assert f"resumed from the local copies of step {newest[1]}\n" in outputs[0]
    starts = json.loads((hosts.run / "local.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, *newest]
    assert not (hosts.run / "passed_on").exists()
    assert_as_if_left_alone(hosts, replicated)


def test_a_damaged_copy_is_not_used_but_the_one_before_it_of_which_all_have_their_part(
    split, tmp_path
):
    hosts = Hosts(tmp_path, *split.mesh)
    hosts.lose_process_1(at=4 * EVERY)
    newest = hosts.all_have()
    damaged = hosts.copies(1)[newest]
    flip(damaged / "shards.safetensors")
    outputs = hosts.finish()
    assert (
        f"warning: checkpoint {damaged} is damaged: shards.safetensors: expected sha256 "
        in (outputs[1])
    )
    assert f"copies of step {newest} are not complete: what a process held is on no" in outputs[0]
    assert f"resumed from the local copies of step {newest - EVERY}\n" in outputs[0]
    assert_as_if_left_alone(hosts, split)


def test_where_a_part_is_lost_the_checkpoint_is_used_and_the_reason_said(split, tmp_path):
    hosts = Hosts(tmp_path, *split.mesh)
    hosts.lose_process_1(at=3 * EVERY)
    shutil.rmtree(hosts.home(1))
    newest = max(hosts.copies(0))
    outputs = hosts.finish()
    assert f"the local copies of step {newest} are not complete" in outputs[0]
    assert f"resumed from {hosts.run}/checkpoints/{EVERY}\n" in outputs[0]
    assert_as_if_left_alone(hosts, split)


def test_of_four_hosts_the_one_with_the_same_parts_passes_them_on(tmp_path):
    """Two replicas, each split over two hosts."""
    runs = []
    for name in ("alone", "lost"):
        (tmp_path / name).mkdir()
        runs.append(Hosts(tmp_path / name, "mesh.fsdp=2", "mesh.data=2", count=4, steps=60))
    alone, lost = runs
    alone.finish()
    lost.lose_process_1(at=3 * EVERY)
    shutil.rmtree(lost.home(1))
    newest = max(set.intersection(*(set(lost.copies(process)) for process in (0, 2, 3))))
    outputs = lost.finish()
    assert f"resumed from the local copies of step {newest}\n" in outputs[0]
    assert_as_if_left_alone(lost, alone)


def test_copies_of_another_mesh_are_not_used(replicated, tmp_path):
    hosts = Hosts(tmp_path)
    hosts.lose_process_1(at=3 * EVERY)
    outputs = hosts.finish("mesh.fsdp=2", "mesh.data=1")
    assert "is not used: mesh changed since" in outputs[0]
    assert f"resumed from {hosts.run}/checkpoints/{EVERY}\n" in outputs[0]
