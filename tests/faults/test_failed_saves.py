"""A save that fails: the checkpoint before it is whole, and the run ends soon and clearly."""

import resource
import subprocess
import sys

import pytest

from jaxformer.train.metrics import read_rows
from tests.faults.disturbed import wait_until
from tests.runs import REPOSITORY, finish

# In a user's own name space, where mounting needs no rights; it is gone with its last process.
PRIVATE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
# A checkpoint takes up to 400 kB here: one or two fit.
ON_A_SMALL_DISK = """
folder=$1; shift
mount -t tmpfs -o size=700k tmpfs "$folder" || exit 125
"$@"
code=$?
cp -r "$folder" "$folder-after"
exit $code
"""


def can_mount(folder) -> bool:
    try:
        mounted = subprocess.run([*PRIVATE, f"mount -t tmpfs tmpfs '{folder}'"], check=False)
    except FileNotFoundError:
        return False
    return mounted.returncode == 0


def test_a_disk_that_fills_up_ends_the_run_soon_and_the_checkpoint_before_is_whole(
    undisturbed, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("no disk can be mounted here: unshare --map-root-user --mount is refused")
    command = [sys.executable, "train.py", undisturbed.config, f"run.dir={disk}/run"]
    ended = subprocess.run(
        [*PRIVATE, ON_A_SMALL_DISK, "sh", disk, *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    error = ended.stderr[ended.stderr.index("error: ") :]
    assert "could not be saved" in error or "metrics.jsonl cannot be written" in error
    assert "No space left on device" in error
    assert len(error.splitlines()) == 1
    run = tmp_path / "disk-after" / "run"
    assert max(row["step"] for row in read_rows(run / "metrics.jsonl")) < 100
    assert f"resumed from {run}/checkpoints/" in undisturbed.complete(run)
    undisturbed.assert_equals(run)


def test_a_save_that_fails_in_the_background_ends_the_run_at_the_next_step(undisturbed):
    """A quota: no file may grow beyond 12,000 bytes once the first checkpoint is there."""
    run = undisturbed.run.with_name("quota")
    process = undisturbed.start(run)
    wait_until((run / "checkpoints" / "20").is_dir, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (12_000, 12_000))
    code, output = finish(process)
    assert code == 1, output
    assert f"could not be saved in {run}/checkpoints: " in output
    assert "The newest checkpoint is that of step " in output
    assert "File too large" in output
    assert max(row["step"] for row in read_rows(run / "metrics.jsonl")) < 100
    undisturbed.complete(run)
    undisturbed.assert_equals(run)
