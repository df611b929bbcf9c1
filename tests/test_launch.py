"""The scripts of launch/."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxformer.loading import load_config

REPOSITORY = Path(__file__).parents[1]
LAUNCH = REPOSITORY / "launch"

# Writes down that it ran, and ends with the next of the codes.
PROGRAM = """
import pathlib, sys
ran = pathlib.Path(sys.argv[1])
ran.write_text((ran.read_text() if ran.exists() else "") + "x")
sys.exit(int(sys.argv[2:][len(ran.read_text()) - 1]))
"""
STOPS = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("started", flush=True)
signal.pause()
"""


def until_done(*arguments: str | Path) -> list[str]:
    program = [sys.executable, "-c", *map(str, arguments)]
    return [sys.executable, str(LAUNCH / "until_done.py"), *program]


@pytest.mark.parametrize(("codes", "runs"), [("75 75 0", 3), ("75 1 0", 2), ("0", 1)])
def test_what_ends_with_75_is_run_again(tmp_path, codes, runs):
    ran = tmp_path / "ran"
    finished = subprocess.run(until_done(PROGRAM, ran, *codes.split()), check=False)
    assert len(ran.read_text()) == runs
    assert finished.returncode == int(codes.split()[runs - 1])


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_run_and_ends_it_for_good(signum):
    process = subprocess.Popen(until_done(STOPS), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    process.send_signal(signum)
    assert process.wait(30) == 75
    assert process.stdout.read() == ""


def test_a_run_killed_by_a_signal_is_not_run_again():
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run(until_done(killed), check=False).returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda script: script.name)
def test_a_script_is_bash(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_what_is_launched_exists():
    text = "\n".join(file.read_text() for file in sorted(LAUNCH.iterdir()))
    configs = set(re.findall(r"configs/[\w/.]+\.yaml", text))
    assert len(configs) >= 3
    for config in configs:
        load_config(REPOSITORY / config)


def test_the_jobset_restarts_without_counting_what_was_saved():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert jobset["kind"] == "JobSet"
    (slices,) = jobset["spec"]["replicatedJobs"]
    rules = slices["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [75]
    container = slices["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["name"] == rules[0]["onExitCodes"]["containerName"]
    assert container["command"][:2] == ["python", "train.py"]
