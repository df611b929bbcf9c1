"""Profiles of runs in this process; several processes stand in tests/devices/test_processes.py."""

import json
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path

import jax
import pytest
from jax.profiler import ProfileData

from jaxformer.cli import main
from jaxformer.parallel.mesh import make_mesh
from jaxformer.run_files import TRACES
from jaxformer.train import program
from jaxformer.train.program import make_program
from jaxformer.train.run import train
from tests.runs import (
    MODEL,
    assert_same_arrays,
    make_config,
    results,
    saved_arrays,
    write_config,
)

# Two kinds of mixers, a whole repetition of the pattern twice, and one layer more.
HYBRID = {
    **MODEL,
    "num_layers": 5,
    "pattern": [{"mixer": {"kind": "retention", "num_heads": 2}}, {}],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert train(make_config(folder, model=HYBRID)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def profiled(tmp_path_factory) -> Path:
    """A run that takes a profile of its steps 4, after which it is evaluated, and 5."""
    folder = tmp_path_factory.mktemp("profiled")
    config = make_config(folder, model=HYBRID, train={"profile": {"start": 4, "steps": 2}})
    assert train(config) == 0
    return folder / "run"


def test_a_trace_holds_exactly_the_steps_asked_for(profiled):
    trace = ProfileData.from_file(f"{profiled}/profile/4/{TRACES}/process_0.xplane.pb")
    steps = [
        dict(event.stats)["step_num"]
        for plane in trace.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert steps == [4, 5]
    assert [each.name for each in (profiled / "profile").iterdir()] == ["4"]
    assert (profiled / "profile" / "4" / "process_0.memory.prof").stat().st_size > 100


def test_a_profile_has_the_time_of_every_mixer_and_of_the_other_parts(profiled, capsys):
    assert main(["profile", str(profiled), "--json"]) == 0
    profile = json.loads(capsys.readouterr().out)
    parts = {part["name"]: part["milliseconds"] for part in profile["parts"]}
    assert {
        "mixer retention, layers 0, 2",
        "mixer attention, layers 1, 3",
        "mixer retention, layers 4",
        "ffn",
        "norms",
        "embedding",
        "loss",
        "optimizer",
    } <= parts.keys()
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(profile["operations"])
    assert sum(part["share"] for part in profile["parts"]) == pytest.approx(1)
    assert list(profile["steps"]) == ["4", "5"]
    assert 0 < profile["busy"] <= 1
    assert profile["largest"][0]["milliseconds"] >= profile["largest"][-1]["milliseconds"] > 0

    assert main(["profile", str(profiled)]) == 0
    output = capsys.readouterr().out
    assert f"{profiled}/profile/4, process 0, 1 device" in output
    assert all(f"  {name} " in output for name in parts)


def test_a_profile_changes_neither_the_program_nor_the_results(plain, profiled, tmp_path):
    mesh = make_mesh({})
    without = make_program(make_config(tmp_path, model=HYBRID), mesh, 257)
    profile = {"profile": {"start": 4, "steps": 2}}
    within = make_program(make_config(tmp_path, model=HYBRID, train=profile), mesh, 257)
    assert within.compile(None).train_step is without.compile(None).train_step
    assert results(profiled) == results(plain)
    assert_same_arrays(saved_arrays(profiled, 12), saved_arrays(plain, 12))


def test_scopes_are_names_and_nothing_else(tmp_path, monkeypatch):
    def lowered() -> tuple[str, str]:
        """The program without and with the names of its operations."""
        program._shared_program.cache_clear()
        made = make_program(make_config(tmp_path), make_mesh({}), 257)
        step = jax.jit(made.train_step).lower(made.abstract, made._abstract_batch(4))
        return step.as_text(), step.as_text(debug_info=True)

    ours, named = lowered()
    monkeypatch.setattr(jax, "named_scope", lambda name: nullcontext())
    plain, without = lowered()
    program._shared_program.cache_clear()
    assert plain == ours
    assert '"jit(train_step)/optimizer/' in named
    assert "optimizer/" not in without


def test_a_profile_after_the_last_step_is_refused(tmp_path, capsys):
    file = write_config(make_config(tmp_path), tmp_path / "config.yaml")
    assert main(["train", str(file), "train.profile={start: 11, steps: 3}"]) == 2
    assert (
        "train: profile.start 11 and profile.steps 3 lead to step 13, but steps is 12; start "
        "earlier, or take fewer"
    ) in capsys.readouterr().err


def test_a_resumed_run_says_that_the_start_of_its_profile_has_passed(plain, tmp_path, capsys):
    run = shutil.copytree(plain, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "12")
    assert main(["train", str(run), "train.profile={start: 8, steps: 2}"]) == 0
    assert (
        "no profile: train.profile.start is 8, and the run goes on after step 8; give a later start"
    ) in capsys.readouterr().out
    assert not (run / "profile").exists()
    assert results(run) == results(plain)


def test_a_run_that_has_taken_its_profile_resumes_without_a_word_of_it(profiled, tmp_path, capsys):
    run = shutil.copytree(profiled, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "12")
    assert main(["train", str(run)]) == 0
    assert "profile:" not in capsys.readouterr().out
    assert results(run) == results(profiled)


def test_a_run_stopped_within_its_profile_writes_none_and_can_take_another(
    plain, tmp_path, capsys, monkeypatch
):
    config = make_config(tmp_path, model=HYBRID, train={"profile": {"start": 4, "steps": 3}})
    take = jax.profiler.StepTraceAnnotation

    def stop_at_5(name: str, step_num: int) -> object:
        if step_num == 5:
            signal.raise_signal(signal.SIGTERM)
        return take(name, step_num=step_num)

    with monkeypatch.context() as patch:
        patch.setattr(jax.profiler, "StepTraceAnnotation", stop_at_5)
        assert train(config) == 75
    assert "the run ends while it takes its profile: no profile is written" in (
        capsys.readouterr().out
    )
    run = tmp_path / "run"
    assert not (run / "profile").exists()
    assert main(["train", str(run), "train.profile.start=8"]) == 0
    assert [each.name for each in (run / "profile").iterdir()] == ["8"]
    assert results(run) == results(plain)


def test_a_profile_that_cannot_be_written_does_not_end_the_run(plain, tmp_path, capsys):
    config = make_config(tmp_path, model=HYBRID, train={"profile": {"start": 4, "steps": 1}})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").write_text("")
    assert train(config) == 0
    assert f"no profile: {tmp_path}/run/profile/4 cannot be written: " in capsys.readouterr().out
    assert results(tmp_path / "run") == results(plain)


def test_a_run_without_a_profile_names_the_command_that_takes_one(plain, profiled, capsys):
    assert main(["profile", str(plain)]) == 2
    assert f"jaxformer train {plain}/config.yaml 'train.profile={{start: STEP, steps: 3}}'" in (
        capsys.readouterr().err
    )
    assert main(["profile", str(profiled), "--process", "1"]) == 2
    assert "has no trace of process 1; it has process_0" in capsys.readouterr().err
