"""Scripts of this folder, run on simulated devices."""

import json
import os
import subprocess
import sys

from tests.runs import REPOSITORY


def run_on_devices(count: int, script: str, *arguments: str) -> dict:
    """The JSON that `script` prints where there are `count` devices."""
    devices = f"--xla_force_host_platform_device_count={count}"
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
