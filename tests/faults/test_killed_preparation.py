"""`kill -9`, again and again while a store is made: what is done is kept, and the store is the
same to the byte."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.data.test_parts import contents
from tests.data.test_store import write_rows
from tests.runs import REPOSITORY


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    words = ["--out", str(out), "--shard-bytes", "400000", f"data.source=jsonl:{folder}/*.jsonl"]
    command = [sys.executable, "-m", "jaxformer", "data", "prepare", "configs/quickstart.yaml"]
    return subprocess.Popen(
        [*command, *words, f"data.cache_dir={folder / 'cache'}"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )


def shards(out: Path) -> set[str]:
    return {path.name for path in out.rglob("*.json") if path.name != "index.json"}


def test_a_killed_preparation_goes_on_and_makes_the_same_store(tmp_path, kills) -> None:
    write_rows(tmp_path / "rows.jsonl", 40_000)
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert start(tmp_path, whole).wait() == 0
    seconds = time.monotonic() - began
    moment, out = random.Random(0), tmp_path / "killed"
    for _ in range(kills):
        process, done = start(tmp_path, out), shards(out)
        time.sleep(moment.uniform(0.3, 1.0) * seconds)
        process.kill()
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
        assert done <= shards(out)
        if list(out.glob("*/index.json")):  # it was too late for this one
            shutil.rmtree(out)
    process = start(tmp_path, out)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert contents(out) == contents(whole)
