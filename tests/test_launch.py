"""The scripts of launch/, run with stand-ins for the clouds' own commands."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from jaxformer.config.loading import load_config

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


# A cloud of one slice, whose one host has the folder `slice` as its home.
GCLOUD = """
[ "$1 $2 $3" = "compute tpus tpu-vm" ] || exit 2
case "$4" in
  describe) [ -d "$CLOUD/slice" ] && echo READY ;;
  delete) rm -r "$CLOUD/slice" ;;
  create) if [ -e "$CLOUD/full" ]; then rm "$CLOUD/full"; exit 1; fi; mkdir "$CLOUD/slice" ;;
  ssh) cd "$CLOUD/slice" && bash -c "${!#}" ;;
esac
"""
# The host's own Python: uv makes an environment of a stand-in for python, and installs nothing.
PYTHON3 = f"""
case "$*" in
  "-m pip install"*) ;;
  "-m uv venv"*) mkdir -p "${{!#}}/bin" && cp "$CLOUD/bin/python" "${{!#}}/bin/python" ;;
  "-m uv pip install"*)
    if [ -e "$CLOUD/offline" ]; then rm "$CLOUD/offline"; exit 3; fi; [ -e pyproject.toml ] ;;
  *) exec {sys.executable} "$@" ;;
esac
"""
# Writes down what would be trained, and ends as the next line of `trainings` says: with a code, or
# with a slice that is taken away.
PYTHON = f"""
[ "$1" = train.py ] || exec {sys.executable} "$@"
[ -e train.py ] || exit 2
printf '%s\\n' "$*" >> "$CLOUD/trained"
next=$(head -n 1 "$CLOUD/trainings") && sed -i 1d "$CLOUD/trainings"
case "$next" in
  gone) rm -r "$CLOUD/slice"; exit 255 ;;
  *) exit "$next" ;;
esac
"""
# Queues a script again for as long as it asks to be.
SBATCH = """
while [ "${1#-}" != "$1" ]; do shift; done
export SLURM_JOB_ID=7
while true; do
  bash "$@"; code=$?
  [ -e "$CLOUD/requeued" ] || exit "$code"
  rm "$CLOUD/requeued"
done
"""
SRUN = 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"'
SCONTROL = '[ "$*" = "requeue 7" ] && touch "$CLOUD/requeued"'
STAND_INS = {
    "gcloud": GCLOUD,
    "python3": PYTHON3,
    "python": PYTHON,
    "sbatch": SBATCH,
    "srun": SRUN,
    "scontrol": SCONTROL,
    "sleep": "true",
}

Launch = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def cloud(tmp_path) -> Path:
    """A folder of stand-ins, and a Git repository of this one's working tree."""
    folder = tmp_path / "cloud"
    repository = folder / "repository"
    shutil.copytree(LAUNCH, repository / "launch")
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, repository)
    (repository / "jaxformer").symlink_to(REPOSITORY / "jaxformer")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)
    (folder / "bin").mkdir()
    for name, text in STAND_INS.items():
        (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture
def launch(cloud) -> Launch:
    """A command in the repository, where trainings end as given: its exit code, and the arguments
    of every training."""

    def run(command: list[str], *trainings: str, **environment: str) -> tuple[int, list[str]]:
        (cloud / "trainings").write_text("".join(f"{each}\n" for each in trainings))
        trained = cloud / "trained"
        trained.write_text("")
        there = {"PATH": f"{cloud / 'bin'}:{os.environ['PATH']}", "CLOUD": str(cloud)}
        home = {"HOME": str(cloud), "GIT_CONFIG_NOSYSTEM": "1"}
        finished = subprocess.run(
            command,
            cwd=cloud / "repository",
            env={**os.environ, **there, **home, **environment},
            check=False,
            timeout=120,
        )
        assert (cloud / "trainings").read_text() == ""
        return finished.returncode, trained.read_text().splitlines()

    return run


def test_a_slice_is_made_set_up_and_trained_on_until_the_run_is_done(cloud, launch):
    slice_of = {"NAME": "run1", "ZONE": "zone", "TYPE": "v5p-8", "VERSION": "v2-alpha-tpuv5"}
    slice_of["REPOSITORY"] = str(cloud / "repository")
    command = ["launch/tpu_vm.sh", "c.yaml", "run.dir=gs://a/b", "model.mixer={kind: mamba}"]
    training = " ".join(["train.py", *command[1:]])

    # The set-up fails, and the same command goes on from there; no capacity, at first.
    (cloud / "full").touch()
    (cloud / "offline").touch()
    assert launch(command, **slice_of) == (3, [])
    # Stopped with everything saved; taken away; to the end on a new slice.
    assert launch(command, "75", "gone", "0", **slice_of) == (0, [training] * 3)
    # On the slice that is there: a failure is not tried again.
    (cloud / "slice" / "kept").touch()
    assert launch(command, "1", **slice_of) == (1, [training])
    assert (cloud / "slice" / "kept").exists()


def test_slurm_queues_a_run_again_that_was_stopped_in_time(cloud, launch):
    environment = cloud / "repository" / ".venv" / "bin"
    environment.mkdir(parents=True)
    shutil.copy(cloud / "bin" / "python", environment)
    usage = re.search(r"#     (sbatch (?:.*\\\n#.*)*.*)", (LAUNCH / "slurm.sh").read_text())
    command = shlex.split(usage[1].replace("\\\n#", ""))
    command[1:5] = [f"--{flag}" for flag in ("nodes=4", "gpus-per-node=8")]
    training = " ".join(["train.py", *command[4:]])
    assert launch(command, "75", "0") == (0, [training] * 2)
    assert launch(command, "1") == (1, [training])


def test_the_image_has_what_its_pods_run(cloud, launch):
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    copied = [source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]]
    assert copied[-1] == "."
    assert all((REPOSITORY / source).exists() for source in copied)

    (install,) = (rest for name, rest in steps if name == "RUN")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for extra in ("tpu", "cuda", ""):
        said = ["bash", "-c", install.replace("pip install", "echo")]
        package = subprocess.check_output(said, env={"EXTRA": extra}, text=True).strip()
        assert Requirement(f"jaxformer{package[1:]}").extras == {"gcs", extra} - {""}
        assert {"gcs", extra} - {""} <= extras["optional-dependencies"].keys()

    jobset = (LAUNCH / "jobset.yaml").read_text()
    (slices,) = yaml.safe_load(jobset)["spec"]["replicatedJobs"]
    (container,) = slices["template"]["spec"]["template"]["spec"]["containers"]
    xpk = shlex.split(re.search(r'--command "(.*)"', jobset)[1])
    image = next(yaml.safe_load(rest) for name, rest in steps if name == "CMD")
    for command in (container["command"], xpk, image):
        assert launch(command, "0") == (0, [" ".join(command[1:])])
        load_config(REPOSITORY / command[2], command[3:])


def test_what_is_launched_exists():
    text = "\n".join(file.read_text() for file in sorted(LAUNCH.iterdir()))
    configs = set(re.findall(r"configs/[\w/.]+\.yaml", text))
    assert len(configs) >= 3
    for config in configs:
        load_config(REPOSITORY / config)
    for named in set(re.findall(r"launch/[\w.]+", text)):
        assert (REPOSITORY / named).exists(), named


def test_the_jobset_restarts_without_counting_what_was_saved():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert jobset["kind"] == "JobSet"
    (slices,) = jobset["spec"]["replicatedJobs"]
    rules = slices["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [75]
    container = slices["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["name"] == rules[0]["onExitCodes"]["containerName"]


@pytest.fixture
def preparation(tmp_path, monkeypatch) -> tuple[list[str], Path]:
    """What follows `data prepare` for two small files, and the place of its stores, with the
    package's own command in .venv/bin and on PATH."""
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("some text " * 500)
    environment = tmp_path / ".venv" / "bin"
    environment.mkdir(parents=True)
    command = f'#!/usr/bin/env bash\nexec {sys.executable} -m jaxformer "$@"\n'
    (environment / "jaxformer").write_text(command)
    (environment / "jaxformer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{environment}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    config = tmp_path / "c.yaml"
    config.symlink_to(REPOSITORY / "configs" / "quickstart.yaml")
    keys = [f"data.source=text:{tmp_path}/*.txt", f"data.cache_dir={tmp_path / 'cache'}"]
    return [str(config), *keys, "--shard-bytes", "4096"], tmp_path / "stores"


def test_the_tasks_of_a_slurm_array_prepare_a_store_and_a_further_job_merges_it(preparation):
    words, stores = preparation
    script = str(LAUNCH / "prepare_slurm.sh")

    def submit(*more: str, **environment: str) -> int:
        command = ["bash", script, *words, "--out", str(stores), *more]
        place = stores.parent
        return subprocess.run(
            command, cwd=place, env={**os.environ, **environment}, check=False
        ).returncode

    for task in range(2):
        assert submit(SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_TASK_COUNT="2") == 0
    assert not list(stores.glob("*/index.json"))
    assert submit("--merge") == 0
    assert len(list(stores.glob("*/index.json"))) == 1


def test_the_pods_of_a_job_prepare_a_part_each(preparation):
    words, stores = preparation
    job = (LAUNCH / "prepare_job.yaml").read_text()
    spec = yaml.safe_load(job)["spec"]
    assert spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    assert f"--parts {spec['completions']}" in container["command"][2]
    there = {"CONFIG": shlex.join(words), "gs://BUCKET/stores": str(stores)}
    shell, flag, line = container["command"]
    for name, value in there.items():
        line = line.replace(name, value)
    for index in (0, spec["completions"] - 1):
        environment = {**os.environ, "JOB_COMPLETION_INDEX": str(index)}
        subprocess.run([shell, flag, line], env=environment, check=True)
    assert len(list(stores.glob("*/*.tokens"))) == 1


def test_the_skypilot_job_trains_and_recovers_from_what_was_saved(launch, cloud):
    job = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert job["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    environment = cloud / "repository" / ".venv" / "bin"
    environment.mkdir(parents=True)
    shutil.copy(cloud / "bin" / "python", environment)
    here = {"RUN": "gs://a/run", "CONFIG": job["envs"]["CONFIG"]}
    code, (training,) = launch(["bash", "-c", job["run"]], "75", **here)
    assert code == 75
    assert training.split()[:3] == ["train.py", here["CONFIG"], "run.dir=gs://a/run"]
    load_config(REPOSITORY / here["CONFIG"], training.split()[2:])
