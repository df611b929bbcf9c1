"""Scripts of this folder, run on simulated devices."""

import json
import os
import subprocess
import sys

from tests.runs import REPOSITORY


def run_on_devices(count: int, script: str, *arguments: str) -> dict:
    """The JSON that `script` prints where there are `count` devices."""
    # On a busy machine a device may wait longer for the others than XLA's 40 seconds.
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=300"
    devices = f"--xla_force_host_platform_device_count={count} {patience}"
    finished = subprocess.run(
        [sys.executable, "-m", f"tests.devices.{script}", *arguments],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}",
            "PYTHONPATH": str(REPOSITORY / "tests"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)
