"""Text, length and batch that change in mid-run: as if the run were stopped and resumed with other
data, to the last bit."""

import json
import shutil

import grain
import jax
import numpy as np
import pytest
from jax import monitoring
from pydantic import ValidationError

from jaxformer.arena.config import ArenaConfig
from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.config.local_paths import made_absolute
from jaxformer.data.loader import rows_per_source
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from jaxformer.parallel.mesh import make_mesh
from jaxformer.plan import plan
from jaxformer.train import announce
from jaxformer.train.mfu import Peak
from jaxformer.train.program import make_program
from jaxformer.train.recorder import Recorder
from jaxformer.train.run import train
from jaxformer.train.stages import Course, check_batches, run_stages
from tests.runs import assert_same_arrays, make_config, results, saved_arrays, write_text
from tests.train.test_loop import signal_at_step

# A mixture first; then rows of twice the length, one source alone; then larger batches of the first
# length, of which the weights differ.
UNTIL = (4, 8)


def words(folder, letters):
    """Another text, as a source."""
    path = folder / f"{letters}.txt"
    random = np.random.default_rng(1)
    path.write_text(" ".join("".join(random.choice(list(letters), 4)) for _ in range(4000)))
    return f"text:{path}"


def three_stages(folder):
    one, other = write_text(folder), words(folder, "klmn")
    return [
        {"until": UNTIL[0], "source": [{"source": one, "weight": 2}, {"source": other}]},
        {"until": UNTIL[1], "source": other, "sequence_length": 32, "batch_size": 2},
        {"source": [{"source": other, "weight": 3}, {"source": one}], "batch_size": 8},
    ]


def staged(folder, stages=None, accept=(), **sections):
    folder.mkdir(exist_ok=True)
    data = {} if stages is None else {"stages": stages}
    run = {"dir": str(folder / "run"), "accept_changes": list(accept)}
    sections = {"checkpoint": {"every": 4, "keep_newest": 9}, **sections}
    data |= sections.pop("data", {})
    return make_config(folder, data=data, run=run, **sections)


def stop_at(monkeypatch, step, config):
    with monkeypatch.context() as patch:
        signal_at_step(patch, step)
        assert train(config) == 75


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three stages, never stopped."""
    folder = tmp_path_factory.mktemp("stages")
    assert train(staged(folder, three_stages(folder))) == 0
    return folder


def assert_same_runs(one, other):
    assert results(one / "run") == results(other / "run")
    for step in (4, 8, 12):
        assert_same_arrays(saved_arrays(one / "run", step), saved_arrays(other / "run", step))


def test_tokens_are_summed_over_the_stages(finished):
    rows = [row for row in results(finished / "run") if "loss" in row]
    per_step = [4 * 16] * 4 + [2 * 32] * 4 + [8 * 16] * 4
    assert {row["step"]: row["tokens"] for row in rows} == {
        step: sum(per_step[:step]) for step in (1, 2, 4, 6, 8, 10, 12)
    }


def test_a_run_stopped_and_resumed_with_the_next_data_equals_one_with_stages(
    finished, tmp_path, monkeypatch
):
    first, second, third = three_stages(finished)
    stop_at(monkeypatch, 4, staged(tmp_path, [first | {"until": None}]))
    stop_at(monkeypatch, 8, staged(tmp_path, [second | {"until": None}], ["data"]))
    assert train(staged(tmp_path, [third], ["data"])) == 0
    assert_same_runs(finished, tmp_path)


def test_a_run_killed_in_every_stage_and_between_them_equals_one_that_never_stopped(
    finished, tmp_path, monkeypatch
):
    for step in (2, 4, 7, 10):
        stop_at(monkeypatch, step, staged(tmp_path, three_stages(finished)))
    assert train(staged(tmp_path, three_stages(finished))) == 0
    assert_same_runs(finished, tmp_path)


def test_steps_that_were_lost_are_taken_again_from_the_stage_before(
    finished, tmp_path, monkeypatch
):
    config = staged(tmp_path, three_stages(finished), checkpoint={"every": 3, "keep_newest": 9})
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "add", dies_at(10, Recorder.add))
        with pytest.raises(RuntimeError, match="lost"):
            train(config)
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "add", dies_at(5, Recorder.add))
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "9")
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
        with pytest.raises(RuntimeError, match="lost"):
            train(config)
    assert train(config) == 0
    assert results(tmp_path / "run") == results(finished / "run")
    assert_same_arrays(saved_arrays(tmp_path / "run", 12), saved_arrays(finished / "run", 12))


def dies_at(step, add):
    def add_or_die(self, launched, metrics):
        if launched == step:
            raise RuntimeError("lost")
        add(self, launched, metrics)

    return add_or_die


def test_a_run_of_one_stage_equals_a_plain_run(finished, tmp_path):
    second = three_stages(finished)[1]
    plain = {"source": second["source"], "sequence_length": 32}
    config = staged(tmp_path, data=plain, train={"batch_size": 2, "steps": 4})
    assert train(config) == 0
    one = staged(tmp_path / "one", [second | {"until": None}], train={"steps": 4})
    assert train(one) == 0
    assert_same_arrays(saved_arrays(tmp_path / "run", 4), saved_arrays(tmp_path / "one/run", 4))


def test_source_length_and_batch_may_change_by_hand_without_stages_as_well(
    finished, tmp_path, monkeypatch
):
    """The weights are the same; only validation follows `data`."""
    first, second, _ = three_stages(finished)
    stop_at(monkeypatch, 4, staged(tmp_path, data={"source": first["source"]}))
    keys = {"data": {"source": second["source"], "sequence_length": 32}, "train": {"batch_size": 2}}
    with pytest.raises(UserError) as error:
        train(staged(tmp_path, **keys))
    assert "give another run.dir, run.accept_changes=[data], or set back" in str(error.value)
    assert "data.sequence_length: 16 before, 32 now" in str(error.value)
    stop_at(monkeypatch, 8, staged(tmp_path, accept=["data"], **keys))
    assert_same_arrays(saved_arrays(tmp_path / "run", 8), saved_arrays(finished / "run", 8))
    rows = [row for row in results(tmp_path / "run") if "loss" in row]
    assert rows == [row for row in results(finished / "run") if "loss" in row][: len(rows)]
    # The run goes on as it is, without accepting anything again.
    assert train(staged(tmp_path, **keys)) == 0


def test_a_checkpoint_says_where_its_stage_is(finished):
    with Checkpoints(finished / "run" / "checkpoints", read_only=True) as checkpoints:
        four, eight, twelve = (checkpoints.state(step)["data"] for step in (4, 8, 12))
    assert [state["next_batch"] for state in (four, eight, twelve)] == [0, 0, 4]
    assert [state["stage"]["start"] for state in (four, eight, twelve)] == [4, 8, 8]
    assert [state["stage"]["tokens"] for state in (four, eight)] == [256, 512]
    # Of 16 rows, two thirds are of the first source; then 8 of the other one in another length.
    (one, read_of_one), (other, read_of_other), (_, read_of_long) = eight["stage"]["rows"]
    assert (read_of_one, read_of_other, read_of_long) == (11, 5, 8)
    assert dict(eight["stage"]["weights"]) == {other: 3.0, one: 1.0}


def course_of(config, **options):
    program = make_program(config, make_mesh(config.mesh.sizes), 257)
    return Course(run_stages(program, Stores(config.data, load_tokenizer("bytes"))), **options)


def rows_of(course, steps):
    return [tuple(row) for step in steps for row in course.batch(step).inputs]


def test_no_row_is_repeated_or_left_out_when_batches_and_weights_change(tmp_path):
    one, other = words(tmp_path, "abcdefghij"), words(tmp_path, "klmnopqrst")
    mixture = [{"source": one, "weight": 4}, {"source": other}]
    stages = [
        {"until": 40, "source": mixture},
        {"until": 50, "source": mixture, "batch_size": 12},
        {"until": 52, "source": one, "sequence_length": 32},
        {"until": 100, "source": mixture[::-1], "batch_size": 8},
        {"source": other},
    ]
    course = course_of(staged(tmp_path, stages, train={"steps": 120}))
    short = [*range(50), *range(52, 120)]
    rows = rows_of(course, short)
    assert len(rows) == 40 * 4 + 10 * 12 + 48 * 8 + 20 * 4
    assert len(set(rows)) == len(rows)  # each source has some 1,200 rows
    # A mixture in which the sources change places.
    equal = [{"source": one}, {"source": other}]
    swaps = [{"until": 3, "source": equal}, {"source": equal[::-1]}]
    swapped = rows_of(course_of(staged(tmp_path, swaps)), range(12))
    straight = rows_of(course_of(staged(tmp_path, data={"source": equal})), range(12))
    assert set(swapped) == set(straight) and swapped != straight
    # One source in batches that grow: its rows in their order, in other pieces.
    grows = [{"until": 3}, {"until": 6, "batch_size": 8}, {}]
    grown = course_of(staged(tmp_path, grows, data={"source": one}))
    plain = course_of(staged(tmp_path, data={"source": one}))
    assert rows_of(grown, range(9)) == rows_of(plain, range(12))


@pytest.mark.parametrize("weights", [[1.0], [2.0, 1.0], [0.1, 3.0, 0.7], [1 / 3, 1 / 7, 0.07]])
def test_the_share_of_each_source_is_that_of_the_mixture(weights):
    names = [grain.MapDataset.source([name]).repeat() for name in range(len(weights))]
    mixed = grain.MapDataset.mix(names, weights) if len(names) > 1 else names[0]
    for rows in (0, 1, 17, 200):
        seen = [mixed[index] for index in range(rows)]
        assert rows_per_source(weights, rows) == [seen.count(name) for name in range(len(weights))]


def test_a_checkpoint_of_an_earlier_version_goes_on_with_its_next_batch(tmp_path):
    config = staged(tmp_path, [{"until": 6}, {"batch_size": 8}])
    whole = course_of(config)
    resumed = course_of(config, step=9, saved={"next_batch": 9})
    assert rows_of(resumed, [9]) == rows_of(whole, [9])
    assert resumed.progress(9) == whole.progress(9)


def test_nothing_is_compiled_once_the_first_step_has_run(tmp_path, monkeypatch):
    compiled, add = [], Recorder.add

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def add_and_count(self, step, metrics):
        counts.append(len(compiled))
        add(self, step, metrics)

    counts: list[int] = []
    monkeypatch.setattr(Recorder, "add", add_and_count)
    monitoring.register_event_duration_secs_listener(listen)
    try:
        # Nothing else is compiled between steps.
        every = {"every": 100}
        assert train(staged(tmp_path, three_stages(tmp_path), eval=every, checkpoint=every)) == 0
    finally:
        monitoring.unregister_event_duration_listener(listen)
    assert len(counts) == 12 and compiled
    assert counts[1:] == counts[1:2] * 11


def test_the_plan_has_a_line_for_every_stage(finished):
    config = staged(finished, three_stages(finished))
    program = make_program(config, make_mesh(config.mesh.sizes), 257)
    stages = run_stages(program, Stores(config.data, load_tokenizer("bytes")))
    text = announce.plan_of(program, stages, Peak(1e12, "cpu"))
    assert "data       3 stages, tokenizer bytes" in text
    assert "stage 1    steps 4 to 8: 2 rows × 32 = 64 tokens; text:" in text
    flops = sum(each.program.flops_per_step for each in stages) * 4
    assert f"run        12 steps, 1,024 tokens, {flops:.3g} FLOPs" in text
    course = Course(stages)
    assert course.flops(12) - course.flops(0) == pytest.approx(flops)


def test_stages_to_come_may_change_if_that_is_accepted_and_past_ones_may_not(
    finished, tmp_path, monkeypatch
):
    first, second, third = three_stages(finished)
    stop_at(monkeypatch, 6, staged(tmp_path, [first, second, third]))
    with pytest.raises(UserError) as error:
        train(staged(tmp_path, [first, second, third | {"batch_size": 4}]))
    assert "run.accept_changes=[data]" in str(error.value)
    assert "data.stages.2.batch_size: 8 before, 4 now" in str(error.value)
    for past in (
        [first | {"batch_size": 8}, second, third],
        [first | {"until": 2}, second, third],
        [second | {"until": None}],
    ):
        with pytest.raises(UserError, match="to 4 of the run in .* are past") as error:
            train(staged(tmp_path, past, ["data"]))
        assert "give another run.dir, or set back:" in str(error.value)
    changed = [first, second | {"until": 7}, third | {"batch_size": 4}]
    assert train(staged(tmp_path, changed, ["data"])) == 0
    last = [row for row in results(tmp_path / "run") if "loss" in row][-1]
    assert last["tokens"] == 4 * 64 + 3 * 64 + 5 * 64


def test_the_text_of_a_stage_that_is_past_may_be_gone(finished, tmp_path, monkeypatch, capsys):
    stages = [{"until": 4, "source": words(tmp_path, "uvwx")}, *three_stages(tmp_path)[1:]]
    stop_at(monkeypatch, 6, staged(tmp_path, stages))
    (tmp_path / "uvwx.txt").unlink()
    assert train(staged(tmp_path, stages)) == 0
    assert "stage 0    steps 0 to 4: past" in capsys.readouterr().out


def test_more_steps_lengthen_the_last_stage(finished, tmp_path, monkeypatch):
    stages = [{"until": 4}, {"batch_size": 8}]
    constant = {"schedule": {"kind": "constant"}}
    assert train(staged(tmp_path, stages, train={"steps": 6}, optimizer=constant)) == 0
    assert train(staged(tmp_path, stages, train={"steps": 8}, optimizer=constant)) == 0
    whole = tmp_path / "whole"
    assert train(staged(whole, stages, train={"steps": 8}, optimizer=constant)) == 0
    assert_same_arrays(saved_arrays(tmp_path / "run", 8), saved_arrays(whole / "run", 8))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages\n.*at least 1 item"),
        ([{"until": 4}, {"until": 4, "batch_size": 8}, {}], "stages.1.until is 4, but the stage"),
        ([{"until": 12}, {"batch_size": 8}], "stages.0.until is 12, so no step is left for the"),
        ([{}, {"batch_size": 8}], "data.stages.0.until is missing, but another stage follows"),
        ([{"until": 4}, {"batch_size": 8, "until": 13}], "stages.1.until is 13, beyond the run"),
        ([{"until": 4}, {"batch_size": 8, "until": 11}], "until is 11, short of the run's end: "),
        ([{"until": 4}, {"tokenizer": "a"}], "tokenizer cannot change from stage to stage; allow"),
        ([{"until": 4}, {"column": "a"}], "column cannot .* to stage; give it in an entry of sou"),
        ([{"until": 4}, {"batch_size": 7}], "data.stages.1.batch_size 7 is not divisible by train"),
        ([{"until": 4}, {"sequence_length": 65}], "data.stages.1.sequence_length is 65, but model"),
        ([{"until": 4}, {"source": "text:a\0b"}], "NUL byte"),
        ([{"until": 4}, {"source": [{"source": "text:a", "format": "messages"}]}], "stages.1: sou"),
    ],
)
def test_stages_that_do_not_follow_each_other_or_do_not_fit_are_refused(tmp_path, stages, message):
    model = {"positions": {"kind": "learned", "max_length": 64}}
    with pytest.raises(ValidationError, match=message):
        staged(tmp_path, stages, model=model, train={"accumulation": 2})


def test_a_stage_that_changes_nothing_is_refused_before_training_alone(tmp_path):
    config = staged(tmp_path, [{"until": 4}, {"batch_size": 4}])
    with pytest.raises(UserError, match="data.stages.1 trains on the same as data.stages.0, in"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_task_has_no_source_in_a_stage_and_its_rows_may_grow(tmp_path):
    task = {"task": {"kind": "parity"}, "tokenizer": "ids:64"}
    with pytest.raises(ValidationError, match="stages.1.source is given, but the rows are"):
        staged(tmp_path, [{"until": 4}, {"source": "text:a"}], data=task)
    config = staged(tmp_path, [{"until": 4}, {"sequence_length": 32}], data=task)
    assert course_of(config).batch(4).inputs.shape == (4, 32)


def test_rows_that_the_mesh_cannot_divide_are_refused_with_their_key(tmp_path):
    sizes = dict.fromkeys(("data", "stage", "fsdp", "expert", "tensor", "context"), 1)
    config = staged(tmp_path, [{"until": 4}, {"batch_size": 6}])
    with pytest.raises(UserError, match="data.stages.1.batch_size is 6, not divisible by 4"):
        check_batches(config, sizes | {"data": 4})


def test_paths_in_stages_are_kept_as_absolute_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = [{"until": 4, "source": "text:a/*.txt"}, {"source": [{"source": "jsonl:b.jsonl"}]}]
    one, other = made_absolute(staged(tmp_path, stages)).data.stages
    assert one.source == f"text:{tmp_path}/a/*.txt"
    assert other.source[0].source == f"jsonl:{tmp_path}/b.jsonl"


def test_a_plan_is_made_of_every_stage(tmp_path, monkeypatch, capsys):
    config = staged(tmp_path, [{"until": 4}, {"sequence_length": 32, "batch_size": 2}])
    seen = []

    def made(config, where, devices, vocab_size):
        seen.append((config.train.batch_size, config.data.sequence_length))
        raise plan.OutOfMemory(2.0, 1.0)

    monkeypatch.setattr(plan, "slices_of", lambda topology, slices: (None, jax.devices()))
    monkeypatch.setattr(plan, "make_plan", made)
    assert plan.plan(config, "v5e-1", 1, as_json=True) == 1
    assert seen == [(4, 16), (2, 32)]
    assert [json.loads(line)["fits"] for line in capsys.readouterr().out.splitlines()] == [
        False,
        False,
    ]


def test_an_arena_has_no_stages(tmp_path):
    base = staged(tmp_path, [{"until": 4}, {"batch_size": 8}]).model_dump(mode="json")
    arena = ArenaConfig.model_validate(
        {
            "baseline": "a",
            "base": base,
            "contestants": {"a": {}},
            "tasks": {"text": {}},
            "learning_rates": [1e-3],
        }
    )
    with pytest.raises(UserError, match="contestant a on text: data.stages is given, but"):
        arena.config("text", "a", {})
