"""Whole runs in this process; those that are killed stand in tests/test_end_to_end.py."""

import json
import re
import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxformer.batch import Batch
from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.config import RunConfig
from jaxformer.config.loading import load_config
from jaxformer.data.packing import PackedRows
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import RunFailed, UserError
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.storage import Unreachable
from jaxformer.train import loop, program, recorder
from jaxformer.train.interrupt import SIGNALS
from jaxformer.train.metrics import TIMING_FIELDS, read_rows
from jaxformer.train.program import make_program
from jaxformer.train.recorder import Recorder
from jaxformer.train.run import train
from tests.checkpoint.test_manager import flip, largest_file
from tests.runs import assert_same_arrays, make_config, results, saved_arrays


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 12 steps with a checkpoint and an evaluation every 4, and its configuration."""
    folder = tmp_path_factory.mktemp("finished")
    config = make_config(folder)
    assert train(config) == 0
    return config, folder / "run"


def test_rows_have_the_promised_fields_at_the_promised_steps(finished):
    _, run = finished
    rows = read_rows(run / "metrics.jsonl")
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == [1, 2, 4, 6, 8, 10, 12]
    for row in training:
        assert {
            "loss",
            "learning_rate",
            "grad_norm",
            "tokens",
            "z_loss",
            *TIMING_FIELDS,
        } <= row.keys()
        assert row["tokens"] == row["step"] * 4 * 16
        assert row["tokens_per_second"] == pytest.approx(4 * 16 / row["step_seconds"])
    evaluations = [row for row in rows if "eval/loss" in row]
    assert [row["step"] for row in evaluations] == [4, 8, 12]
    for row in evaluations:
        assert row["eval/perplexity"] == pytest.approx(np.exp(row["eval/loss"]))
        assert row.keys() == {"step", "eval/loss", "eval/bits_per_byte", "eval/perplexity"}
    assert evaluations[-1]["eval/loss"] < evaluations[0]["eval/loss"]


def test_a_run_directory_holds_what_it_promises(finished):
    config, run = finished
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["config"] == config.model_dump(mode="json")
    assert manifest["tokenizer"]["fingerprint"] == load_tokenizer("bytes").fingerprint
    assert manifest["parameters"] == 257 * 16 + 16 + 2 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16)
    assert {"python", "jax", "flax", "optax", "orbax-checkpoint"} <= manifest["versions"].keys()
    assert manifest["mesh"]["data"] == len(jax.devices())
    assert list(run.glob("tensorboard/events.*"))
    assert (run / "config.yaml").is_file()


def test_a_checkpoint_says_what_it_holds(finished):
    _, run = finished
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [8, 12]
        manifest, state = checkpoints.manifest(12), checkpoints.state(12)
    stage = state["data"].pop("stage")
    assert state == {"step": 12, "data": {"next_batch": 12}, "nonfinite": 0}
    assert stage["start"] == stage["tokens"] == 0
    assert manifest["step"] == 12
    assert manifest["trees"].keys() == {"params", "opt_state", "ema"}
    assert manifest["trees"]["params"]["embedding"] == {"shape": [257, 16], "dtype": "float32"}
    last = read_rows(run / "metrics.jsonl")[-1]
    assert manifest["metrics"]["eval/loss"] == last["eval/loss"]


def test_rows_and_lines_tell_the_memory_of_devices_that_do(tmp_path, capsys, monkeypatch):
    told = {"memory_bytes": 3 << 30, "memory_peak_bytes": 5 << 30, "memory_limit_bytes": 8 << 30}
    monkeypatch.setattr(recorder, "allocated", lambda devices: told)
    assert train(make_config(tmp_path, train={"steps": 1}, optimizer={"schedule": {}})) == 0
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[0]
    assert told.items() <= row.items()
    assert re.search(r"MFU .*%  memory 5.0 GiB of 8.0 GiB\n", capsys.readouterr().out)


def test_a_finished_run_says_so_and_does_nothing(finished, capsys):
    config, run = finished
    before = (run / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train(config) == 0
    output = capsys.readouterr().out
    assert f"{run} is complete: all 12 steps are done" in output
    assert f"jaxformer eval {run}" in output
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_whose_last_checkpoint_is_damaged_is_not_complete(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished[1], run)
    last = run / "checkpoints" / "12"
    flip(largest_file(last))
    config = finished[0].model_copy(update={"run": RunConfig(dir=str(run))})
    assert train(config) == 0
    output = capsys.readouterr()
    assert f"warning: checkpoint {last} is damaged" in output.err
    assert f"resumed from {run}/checkpoints/8" in output.out
    assert_same_arrays(saved_arrays(run, 12), saved_arrays(finished[1], 12))
    assert results(run) == results(finished[1])


def test_the_end_says_how_to_go_on_and_where_the_time_went(tmp_path, capsys):
    assert train(make_config(tmp_path)) == 0
    output = capsys.readouterr().out
    run = tmp_path / "run"
    accept = "'run.accept_changes=[schedule]'"
    assert f"jaxformer train {run}/config.yaml train.steps=MORE {accept}" in output
    assert f'jaxformer generate {run} --prompt "..."' in output
    assert "8,544 parameters, layers scanned" in output
    for part in ("start", "compile", "steps", "data", "evaluation", "saving"):
        assert f"\n  {part}" in output


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished, tmp_path):
    _, run = finished
    same = make_config(tmp_path)
    assert train(same) == 0
    assert results(tmp_path / "run") == results(run)
    assert_same_arrays(saved_arrays(tmp_path / "run", 12), saved_arrays(run, 12))

    other = tmp_path / "other"
    other.mkdir()
    config = make_config(other, train={"seed": 1})
    assert train(config) == 0
    assert results(other / "run")[0]["loss"] != results(run)[0]["loss"]


def test_resumed_three_times_a_run_equals_one_that_never_stopped(finished, tmp_path, monkeypatch):
    _, run = finished
    config = make_config(tmp_path)
    for stop_at in (3, 4, 9):
        with monkeypatch.context() as patch:
            signal_at_step(patch, stop_at)
            assert train(config) == 75
        assert (tmp_path / "run" / "checkpoints" / str(stop_at)).is_dir()
    assert train(config) == 0
    assert results(tmp_path / "run") == results(run)
    assert_same_arrays(saved_arrays(tmp_path / "run", 12), saved_arrays(run, 12))


def signal_at_step(patch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM just after this step was launched."""
    add = Recorder.add

    def add_and_signal(self: Recorder, launched: int, metrics: dict) -> None:
        add(self, launched, metrics)
        if launched == step:
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(Recorder, "add", add_and_signal)


def test_a_signal_during_evaluation_saves_and_the_evaluation_is_made_later(
    finished, tmp_path, monkeypatch, capsys
):
    _, run = finished
    config = make_config(tmp_path)
    evaluate = loop.evaluate

    def evaluate_and_signal(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate_and_signal)
        assert train(config) == 75
    assert "SIGINT: saving step 4" in capsys.readouterr().out
    assert not any("eval/loss" in row for row in read_rows(tmp_path / "run" / "metrics.jsonl"))
    assert train(config) == 0
    assert results(tmp_path / "run") == results(run)


def test_a_run_whose_data_is_lost_saves_stops_and_goes_on(finished, tmp_path, monkeypatch, capsys):
    config, run = finished
    config = config.model_copy(update={"run": RunConfig(dir=str(tmp_path / "run"))})
    pack, packed = PackedRows.pack, []

    def lost(self, rows, keys=None):
        packed.extend(rows if self.begin == 0 else [])  # those to train on
        if len(packed) > 8 * 4:
            raise Unreachable("gs://b/store could not be reached for 300 s: reset by peer")
        return pack(self, rows, keys)

    with monkeypatch.context() as patch:
        patch.setattr(PackedRows, "pack", lost)
        assert train(config) == 75
    said = capsys.readouterr().out
    assert "gs://b/store could not be reached for 300 s: reset by peer" in said
    assert re.search(r"data lost: saving step \d", said)
    assert train(config) == 0
    assert results(tmp_path / "run") == results(run)
    assert_same_arrays(saved_arrays(tmp_path / "run", 12), saved_arrays(run, 12))


def test_handlers_of_signals_are_as_before_after_a_run(tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    assert train(make_config(tmp_path)) == 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_longer_run_goes_on_once_its_other_learning_rate_is_accepted(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished[1], run)
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="at step 12, .* the learning rate was 0 .* would be"):
        train(load_config(run, ["train.steps=14"]))
    assert (run / "config.yaml").read_bytes() == before
    assert train(load_config(run, ["train.steps=14", "run.accept_changes=[schedule]"])) == 0
    assert "accepted: at step 12, from which" in capsys.readouterr().out
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4, 6, 8, 10, 12, 14]


def poison_from(patch: pytest.MonkeyPatch, bad_steps: set[int]) -> None:
    """Make the loss of these steps not a number, by the rate that the schedule gives."""
    make_train_step = program.make_train_step

    def poisoned(loss_of, *arguments):
        def loss(params, reference, batch, rngs):
            found = loss_of(params, reference, batch, rngs)
            bad = jax.numpy.where(batch.inputs[0, 0] < 0, jax.numpy.nan, 1.0)
            return found._replace(total=bad * found.total, sums={"loss": bad * found.sums["loss"]})

        return make_train_step(loss, *arguments)

    patch.setattr(program, "make_train_step", poisoned)

    put = loop.put_batch
    step = 0

    def put_poisoned(batch, sharding):
        nonlocal step
        step += 1
        if step in bad_steps:
            batch = batch._replace(
                inputs=np.where(np.arange(16) == 0, -1, batch.inputs).astype(np.int32)
            )
        return put(batch, sharding)

    patch.setattr(loop, "put_batch", put_poisoned)


def test_one_batch_that_is_not_finite_is_skipped_and_counted(tmp_path, monkeypatch, capsys):
    poison_from(monkeypatch, {5, 6})
    config = make_config(tmp_path, train={"log_every": 1}, eval={"every": 100})
    assert train(config) == 0
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert [row["nonfinite"] for row in rows] == [0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0]
    assert [row["loss"] is None for row in rows] == [row["nonfinite"] > 0 for row in rows]
    assert "step 6  loss nan" in capsys.readouterr().out


def test_too_many_updates_skipped_in_a_row_stop_the_run_and_keep_the_last_good_checkpoint(
    tmp_path, monkeypatch, capsys
):
    poison_from(monkeypatch, set(range(6, 100)))
    config = make_config(
        tmp_path,
        train={"max_nonfinite_steps": 3, "log_every": 1},
        checkpoint={"every": 1, "keep_newest": 1, "keep_best": 0},
        eval={"every": 100},
    )
    assert train(config) == 1
    run = tmp_path / "run"
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [5]
    (saved,) = run.glob("nonfinite_batch_*.npz")
    with np.load(saved, allow_pickle=False) as batch:
        assert batch["inputs"].shape == (4, 16)
        assert batch["loss_mask"].dtype == bool
    output = capsys.readouterr().out
    assert "not finite for 3 steps in a row (train.max_nonfinite_steps)" in output
    assert "the last good checkpoint is step 5" in output


def test_too_many_updates_skipped_at_the_very_end_are_a_failure_as_well(tmp_path, monkeypatch):
    poison_from(monkeypatch, {10, 11, 12})
    config = make_config(tmp_path, train={"max_nonfinite_steps": 3}, eval={"every": 100})
    assert train(config) == 1
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == 8


def test_a_signal_while_updates_are_skipped_leaves_the_good_checkpoint(
    tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        poison_from(patch, {6, 7, 8})
        signal_at_step(patch, 7)
        assert train(make_config(tmp_path)) == 75
    assert "step 7 is not saved: its update was skipped; newest save: 4" in capsys.readouterr().out


def test_a_failed_save_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    launched = []
    add = Recorder.add

    def slow_add(self, step, metrics):
        launched.append(step)
        add(self, step, metrics)
        if step == 4:
            monkeypatch.setattr("os.rename", fail)
            monkeypatch.setattr("pathlib.Path.rename", fail)
        if step > 4:
            signal.sigtimedwait([], 0.3)

    monkeypatch.setattr(Recorder, "add", slow_add)
    with pytest.raises(RunFailed, match=r"step 4 could not be saved in .*: No space left"):
        train(make_config(tmp_path, eval={"every": 100}))
    assert max(launched) <= 6


def test_a_disk_with_less_room_than_a_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    config = make_config(tmp_path)
    # Parameters, their two moments and their average, and AdamW's count, in 4 bytes each.
    needed = 4 * (4 * 8544 + 1)
    with pytest.raises(UserError) as error:
        train(config)
    assert f"with 100,000 bytes free, and a checkpoint takes {needed:,}; make" in str(error.value)
    assert not (tmp_path / "run").exists()
    left = tmp_path / "run" / "checkpoints" / "4.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "d").write_bytes(bytes(needed - 100_000))
    assert train(config) == 0


def test_no_step_can_compile_again_and_the_argument_that_changed_is_named(tmp_path):
    config = make_config(tmp_path)
    mesh = make_mesh(config.mesh.sizes)
    whole = make_program(config, mesh, vocab_size=257)
    compiled = whole.compile(None)
    state = whole.initial_state()
    ones = np.ones((4, 8), np.int32)
    short = put_batch(Batch(ones, ones, ones, ones, ones.astype(bool)), batch_sharding(mesh))
    with pytest.raises(
        TypeError, match=r"batch\.targets.* compiled with int32\[4,16\].*int32\[4,8\]"
    ):
        compiled.train_step(state, short)


def test_data_that_changed_since_the_checkpoint_is_refused_unless_it_is_accepted(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        signal_at_step(patch, 5)
        assert train(make_config(tmp_path)) == 75
    config = make_config(tmp_path)
    accepting = make_config(tmp_path, run={"accept_changes": ["data"]})
    text = tmp_path / "text.txt"
    text.write_text(text.read_text().replace("a", "z"))
    with pytest.raises(
        UserError,
        match=r"the data of .*run has changed since its newest checkpoint.*accept_changes=\[data\]",
    ):
        train(config)
    assert train(accepting) == 0
    assert [row["step"] for row in results(tmp_path / "run") if "loss" in row][-1] == 12


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path):
    config = make_config(tmp_path, model={"vocab_size": 100})
    with pytest.raises(
        UserError, match=r"model.vocab_size is 100, smaller than the tokenizer bytes's 257"
    ):
        train(config)
    assert not (tmp_path / "run").exists()


def test_an_attention_kernel_that_cannot_serve_is_refused_and_nothing_is_written(tmp_path):
    config = make_config(tmp_path, train={"kernels": {"attention": "splash"}})
    with pytest.raises(UserError) as error:
        train(config)
    assert str(error.value) == (
        "train.kernels.attention is splash, but it cannot serve: it is not for cpu devices; auto "
        "takes a kernel where it can serve"
    )
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    config = make_config(tmp_path, mesh={"data": 1, "fsdp": 3})
    with pytest.raises(
        UserError, match=r"mesh sizes multiply to 3 .*, but there (is|are) \d+ cpu device"
    ):
        train(config)
    assert not (tmp_path / "run").exists()
