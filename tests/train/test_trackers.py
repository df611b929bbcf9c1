"""Trackers hold what metrics.jsonl holds, also after a kill, and never disturb the run."""

import json
import signal
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
from mlflow import MlflowClient
from wandb.proto.wandb_internal_pb2 import Record

from jaxformer.arena.cells import cells
from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.match import Matched
from jaxformer.config import RunConfig
from jaxformer.config.loading import load_config
from jaxformer.errors import UserError
from jaxformer.evaluate.samples import OF_CLASSES, OF_TEXTS, Sample
from jaxformer.paths import locate_path
from jaxformer.train import run as training
from jaxformer.train import trackers
from jaxformer.train.metrics import TIMING_FIELDS, read_rows
from jaxformer.train.run import train
from jaxformer.train.trackers import check_trackers, name_of
from jaxformer.train.trackers import follower as following
from jaxformer.train.trackers import wandb as wandb_tracker
from jaxformer.train.trackers.base import BEFORE_ALL, Ids, Position, TrackedRun
from jaxformer.train.trackers.follower import Follower, close_all, values_of
from jaxformer.train.trackers.tensorboard import TensorBoard
from tests.faults.disturbed import SECRETS, wait_until
from tests.runs import MODEL, finish, make_config, start_training, write_config

ALL = ["tensorboard", "wandb", "mlflow", "trackio"]
LOCAL = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
PICTURES = [  # in colour, and grey as a spectrogram
    Sample(np.full((4, 5, 3), 200, np.uint8), "cat", "dog", OF_CLASSES),
    Sample(np.arange(12, dtype=np.uint8).reshape(4, 3, 1), "a", "b", OF_TEXTS),
]
Held = list[tuple[int, str, float]]  # step, name, value


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """Everything that trackers write is below it."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**LOCAL, "TRACKIO_DIR": str(folder / "trackio")}.items():
            patch.setenv(name, value)
        wandb.teardown()  # what it has read of the environment before
        yield folder
        wandb.teardown()


@pytest.fixture(scope="module")
def tracked(folder) -> Path:
    """A run with all trackers, which was left alone."""
    config = make_config(
        folder,
        train={"layer_statistics": {"every": 6}},
        eval={"sample_tokens": 16},
        run={"trackers": ALL, "group": "a-group"},
    )
    assert train(config) == 0
    wandb.teardown()  # processes started from here on would share this one's service
    return folder / "run"


def written(run: Path) -> Held:
    rows = read_rows(run / "metrics.jsonl")
    return sorted((row["step"], *pair) for row in rows for pair in values_of(row).items())


def held_by_wandb(run: Path) -> Held:
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    rows = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in r.history.item}
        for r in offline_records(file)
        if r.WhichOneof("record_type") == "history"
    ]
    return sorted(
        (row["step"], name, value)
        for row in rows
        if "row" in row  # the others are texts
        for name, value in row.items()
        if "/" in name
    )


def offline_records(file: Path) -> Iterator[Record]:
    """The records of a `.wandb` file: after 7 bytes, LevelDB's log in blocks of 32 KiB."""
    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole one, or the last part
            yield Record.FromString(record)
            record = b""


def held_by_mlflow(run: Path) -> Held:
    client = MlflowClient(f"sqlite:///{run}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("jaxformer").experiment_id])
    return sorted(
        (point.step, name, point.value)
        for name in found.data.metrics
        if name != "row"
        for point in client.get_metric_history(found.info.run_id, name)
    )


def held_by_trackio(run: Path) -> Held:
    from trackio.sqlite_storage import SQLiteStorage

    name = json.loads((run / "trackers.json").read_text())["trackio"]
    return sorted(
        (row["step"], name, value)
        for row in SQLiteStorage.get_logs("jaxformer", name)
        for name, value in row.items()
        if "/" in name
    )


HELD = {"wandb": held_by_wandb, "mlflow": held_by_mlflow, "trackio": held_by_trackio}


@pytest.mark.parametrize("tracker", HELD)
def test_a_tracker_holds_exactly_the_metrics(tracked, tracker):
    held = HELD[tracker](tracked)
    assert {"train/loss", "eval/loss", "layer_1/update_rms", "outside_layers/update_rms"} <= {
        name for _, name, _ in held
    }
    assert held == written(tracked)


def test_trackers_have_the_configuration_the_group_and_the_sample(tracked):
    manifest = json.loads((tracked / "manifest.json").read_text())
    sample = (tracked / "samples.txt").read_text().partition("\n")[2].rstrip("\n")

    client = MlflowClient(f"sqlite:///{tracked}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("jaxformer").experiment_id])
    assert run.data.params["train.steps"] == "12"
    assert run.data.params["parameters"] == str(manifest["parameters"]) == "8544"
    assert run.data.tags["group"] == "a-group"
    assert run.data.tags["sample"] == sample
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"

    (file,) = (tracked / "wandb").glob("offline-run-*/run-*.wandb")
    (first,) = [r.run for r in offline_records(file) if r.WhichOneof("record_type") == "run"]
    config = {each.key: json.loads(each.value_json) for each in first.config.update}
    assert config["train"] == manifest["config"]["train"]
    assert config["parameters"] == 8544
    assert (first.run_group, first.display_name) == ("a-group", "run")
    assert list((tracked / "wandb").glob("offline-run-*/files/media/html/sample*.html"))


def test_killed_and_resumed_a_run_is_one_run_to_each_tracker_and_no_step_comes_twice(
    folder, tracked
):
    config = make_config(
        folder,
        train={"log_every": 1},
        checkpoint={"every": 5},
        run={"dir": str(folder / "killed"), "trackers": ALL},
    )
    secrets = SECRETS | {"MLFLOW_TRACKING_PASSWORD": "not-to-be-told-MLFLOW"}
    file, run = write_config(config, folder / "killed.yaml"), folder / "killed"
    process = start_training(
        file,
        environment=secrets | {"WAIT_AFTER_STEP": "9"},
        script="tests/train/train_and_wait.py",
    )
    wait_until(lambda: last_step_of_mlflow(run) == 8, process)
    assert not (run / "checkpoints" / "10").exists()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    output = process.stdout.read()
    process.stdout.close()
    ids = json.loads((run / "trackers.json").read_text())

    code, rest = finish(start_training(file, environment=secrets))
    assert code == 0, rest
    assert f"resumed from {run}/checkpoints/5" in rest
    assert json.loads((run / "trackers.json").read_text()) == ids
    expected = written(run)
    assert [step for step, name, _ in expected if name == "train/loss"] == [*range(1, 13)]
    # MLflow cannot delete, so of the rows that came again it has the first times.
    assert held_by_wandb(run) == held_by_trackio(run) == expected
    assert untimed(held_by_mlflow(run)) == untimed(expected)
    kept = [path for path in folder.rglob("*") if path.is_file()]
    for secret in secrets.values():
        assert secret not in output + rest
        assert not [path for path in kept if secret.encode() in path.read_bytes()]


def last_step_of_mlflow(run: Path) -> int | None:
    if not (run / "trackers.json").exists():
        return None
    if "mlflow" not in json.loads((run / "trackers.json").read_text()):
        return None
    with closing(sqlite3.connect(f"file:{run}/mlflow.db?mode=ro", uri=True)) as database:
        ((step,),) = database.execute("select max(step) from metrics where key = 'row'")
    return step


def untimed(held: Held) -> Held:
    return [each for each in held if each[1].removeprefix("train/") not in TIMING_FIELDS]


class Remembers:
    def __init__(self, holds: Position = BEFORE_ALL) -> None:
        self.holds, self.told, self.closed = holds, [], False

    def write(self, at, values):
        self.told.append((*at, dict(values)))

    def write_text(self, name, text, step):
        self.told.append((step, name, text))

    def close(self):
        self.closed = True


def test_a_tracker_is_told_what_it_missed_and_no_row_that_it_holds():
    tracker = Remembers(holds=Position(3, 1))
    past = [{"step": step, "loss": float(step)} for step in (1, 2, 3)]
    follower = Follower("tracker", lambda: tracker, [*past, {"step": 3, "eval/loss": 0.5}])
    follower.write({"step": 3, "suite/a/acc": 1.0})
    follower.write({"step": 4, "loss": 4.0})
    follower.write_text("sample", "text", 4)
    close_all([follower])
    assert tracker.told == [
        (3, 2, {"eval/loss": 0.5}),
        (3, 3, {"suite/a/acc": 1.0}),
        (4, 1, {"train/loss": 4.0}),
        (4, "sample", "text"),
    ]
    assert tracker.closed


def test_rows_that_a_tracker_holds_are_skipped_when_they_come_again():
    tracker = Remembers(holds=Position(20, 2))
    follower = Follower("tracker", lambda: tracker, [{"step": 10, "loss": 1.0}])
    for step in (20, 30):
        follower.write({"step": step, "loss": 2.0})
        follower.write({"step": step, "eval/loss": 3.0})
    close_all([follower])
    assert [row[:2] for row in tracker.told] == [(30, 1), (30, 2)]


def test_a_tracker_is_not_told_what_is_not_finite():
    assert values_of({"step": 1, "loss": float("nan"), "mfu": None, "tokens": 64}) == {
        "train/tokens": 64
    }


def test_a_tracker_that_fails_warns_once_without_secrets_and_the_run_goes_on(monkeypatch, capsys):
    monkeypatch.setenv("SOME_TOKEN", "not-to-be-told")

    class Failing(Remembers):
        def write(self, at, values):
            raise ConnectionError("not-to-be-told at https://me:secret@host/ is gone")

    follower = Follower("failing", Failing)
    for step in (1, 2):
        follower.write({"step": step, "loss": 1.0})
        close_all([follower])
    assert capsys.readouterr().err == (
        "warning: failing failed and is off from here on: $SOME_TOKEN at https://host/ is gone\n"
    )


def test_a_tracker_that_cannot_start_warns_and_the_run_goes_on(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    board = tmp_path / "file" / "board"
    follower = Follower("tensorboard", lambda: TensorBoard(board, 0, BEFORE_ALL))
    follower.write({"step": 1, "loss": 1.0})
    close_all([follower])
    assert "warning: tensorboard failed and is off from here on" in capsys.readouterr().err


def test_trackers_that_hang_delay_neither_the_steps_nor_the_end(monkeypatch, capsys):
    monkeypatch.setattr(following, "LONGEST_QUEUE", 3)
    monkeypatch.setattr(following, "CLOSE_SECONDS", 0.2)
    released = threading.Event()

    class Hanging(Remembers):
        def write(self, at, values):
            released.wait()

    began = time.monotonic()
    behind, late = Follower("behind", Hanging), Follower("late", Hanging)
    for step in range(1, 9):
        behind.write({"step": step, "loss": 1.0})
    late.write({"step": 1, "loss": 1.0})
    close_all([behind, late])
    assert time.monotonic() - began < 2
    released.set()
    told = "it is told the rest when the run resumes"
    assert capsys.readouterr().err.splitlines() == [
        f"warning: behind is 3 rows behind and is off from here on; {told}",
        f"warning: late is not done 0.2 s after the end; {told}",
    ]


def test_tensorboard_has_the_scalars_and_the_text(tmp_path):
    board = TensorBoard(tmp_path, 0, BEFORE_ALL)
    board.write(Position(3, 1), {"train/loss": 1.5, "eval/loss": 2.5})
    board.write_text("sample", "once upon", 3)
    board.write_pictures("samples", PICTURES, 3)
    board.close()
    (events,) = tmp_path.glob("events.*")
    content = events.read_bytes()
    for part in (b"train/loss", b"eval/loss", b"once upon", b"samples/1", b"samples/2"):
        assert part in content


def test_wandb_has_pictures_with_their_captions(monkeypatch):
    told = []
    board = object.__new__(wandb_tracker.WandB)
    board._run = SimpleNamespace(log=told.append)
    board.write_pictures("samples", PICTURES, 3)
    [row] = told
    assert row["step"] == 3
    assert [each._caption for each in row["samples"]] == [each.caption for each in PICTURES]
    assert [each.image.size for each in row["samples"]] == [(5, 4), (3, 4)]


def test_a_tracker_whose_package_is_missing_is_refused_before_devices_are_touched(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    monkeypatch.setattr(training, "make_mesh", lambda *_: pytest.fail("a device was touched"))
    with pytest.raises(UserError, match=r'pip install "jaxformer\[mlflow\]", or leave it out'):
        train(make_config(tmp_path, run={"trackers": ["mlflow"]}))
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused_with_the_nearest_name(tmp_path):
    file = write_config(make_config(tmp_path), tmp_path / "config.yaml")
    with pytest.raises(UserError, match="run.trackers.* Did you mean 'wandb'"):
        load_config(file, ["run.trackers=[wandbb]"])


def test_wandb_without_a_key_says_how_to_log_in_or_go_offline(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    wandb.teardown()
    wanted = RunConfig(trackers=["wandb"])
    with pytest.raises(UserError, match="`wandb login` or set WANDB_API_KEY; or set WANDB_MODE="):
        check_trackers(wanted, tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()
    check_trackers(wanted, tmp_path)
    wandb.teardown()


def test_a_resumed_run_of_wandb_goes_on_after_what_the_server_holds(tmp_path, monkeypatch):
    class Server:
        def __init__(self, **options):
            self.options, self.summary = options, {"step": 40, "row": 2, "train/loss": 1.0}
            self.offline, self.url = False, "https://wandb.invalid/run"

        def define_metric(self, name, **options):
            pass

    monkeypatch.setattr(wandb, "init", Server)
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()
    (tmp_path / "trackers.json").write_text('{"wandb": "abc"}')
    said = []
    ids = Ids(tmp_path / "trackers.json", resumes=True)
    run = TrackedRun(tmp_path, "name", "group", {}, 30, Position(30, 1), ids, said.append)
    tracker = wandb_tracker.start(run)
    assert tracker.holds == (40, 2)
    options = tracker._run.options
    assert (options["id"], options["resume"]) == ("abc", "allow")
    assert (options["name"], options["group"]) == ("name", "group")
    assert said == ["wandb      https://wandb.invalid/run"]
    wandb.teardown()


def test_offline_files_that_were_uploaded_are_left_and_the_next_start_is_another_run(tmp_path):
    uploaded, waiting = tmp_path / "offline-run-1-abc", tmp_path / "offline-run-2-def"
    for each in (uploaded, waiting):
        each.mkdir()
    (uploaded / "run-abc.wandb.synced").touch()
    assert not wandb_tracker._takes_back(tmp_path, "abc")
    assert not wandb_tracker._takes_back(tmp_path, "another")
    assert wandb_tracker._takes_back(tmp_path, "def")
    assert [each.name for each in tmp_path.iterdir()] == ["offline-run-1-abc"]


def test_a_run_that_starts_over_is_a_new_one(tmp_path):
    Ids(tmp_path / "trackers.json", resumes=False).keep("mlflow", "first")
    assert Ids(tmp_path / "trackers.json", resumes=True).get("mlflow") == "first"
    assert Ids(tmp_path / "trackers.json", resumes=False).get("mlflow") is None


def test_a_place_that_a_tracker_cannot_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="is in a bucket, .* set MLFLOW_TRACKING_URI"):
        check_trackers(RunConfig(trackers=["mlflow"]), locate_path("gs://bucket/run"))
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    with pytest.raises(UserError, match="TRACKIO_SPACE_ID is set; unset it"):
        check_trackers(RunConfig(trackers=["trackio"]), tmp_path)


def test_the_cells_of_an_arena_are_one_group_and_named_by_their_place_in_it(tmp_path):
    arena = ArenaConfig(
        baseline="a",
        base={"model": MODEL, "data": {"source": "text:x"}},
        contestants={"a": {}},
        tasks={"copy": {}},
        learning_rates=(1e-3,),
        seeds=(0, 1),
        match=None,
        dir=str(tmp_path / "duel"),
    )
    solved = Matched(solved={("copy", "a"): {}}, sizes={})
    first, second = (cell.config.run for cell in cells(arena, solved))
    assert first.group == second.group == "duel"
    assert name_of(Path(first.dir), first.group) == "copy/a/lr_0.001/seed_0"
    assert name_of(Path("runs/one"), None) == "one"
    assert name_of(Path("runs/one"), "a-group") == "one"
