import warnings

import pytest

from jaxformer.errors import UserError
from jaxformer.train.metrics import MetricsLog, read_rows
from jaxformer.train.trackers import Guarded, TensorBoard


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_rows_beyond_the_resumed_step_are_dropped(path):
    log = MetricsLog(path, resumed_step=0)
    for step in (1, 2, 3, 4):
        log.write({"step": step, "loss": step / 3})
    log.write({"step": 2, "eval/loss": 0.5})
    log.close()
    log = MetricsLog(path, resumed_step=2)
    assert log.has_evaluation(2)
    assert log.eval_loss(2) == 0.5
    assert not log.has_evaluation(4)
    log.write({"step": 3, "loss": 9.0})
    log.close()
    assert [(row["step"], row.get("loss")) for row in read_rows(path)] == [
        (1, 1 / 3),
        (2, 2 / 3),
        (2, None),
        (3, 9.0),
    ]


def test_a_line_cut_short_by_a_kill_is_dropped(path):
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_rows(path) == [{"step": 1, "loss": 2.0}]
    MetricsLog(path, resumed_step=5).close()
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'


def test_a_damaged_line_inside_is_an_error(path):
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is not JSON: Expecting ',' delim"):
        read_rows(path)
    path.write_text('{"step": 1}\n{"loss": 2.0}\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 has no step"):
        read_rows(path)


def test_a_number_that_is_not_finite_is_null(path):
    log = MetricsLog(path, resumed_step=0)
    log.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    log.close()
    assert path.read_text() == '{"step": 1, "loss": null, "grad_norm": null}\n'


def test_floats_are_written_to_the_last_bit(path):
    log = MetricsLog(path, resumed_step=0)
    log.write({"step": 1, "loss": 0.1 + 0.2})
    log.close()
    assert read_rows(path)[0]["loss"] == 0.1 + 0.2


def test_a_tracker_that_fails_warns_once_and_the_run_goes_on():
    class Failing:
        calls = 0

        def write(self, row):
            Failing.calls += 1
            raise ConnectionError("gone")

        def close(self):
            raise AssertionError("not reached")

    tracker = Guarded("Failing", Failing)
    with pytest.warns(UserWarning, match="Failing failed and is off from here on: gone"):
        tracker.write({"step": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.write({"step": 2})
        tracker.close()
    assert Failing.calls == 1


def test_a_tracker_that_cannot_start_warns_and_the_run_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="TensorBoard failed"):
        tracker = Guarded("TensorBoard", lambda: TensorBoard(tmp_path / "file" / "board", 0))
    tracker.write({"step": 1, "loss": 1.0})


def test_tensorboard_has_the_scalars(tmp_path):
    board = TensorBoard(tmp_path, 0)
    board.write({"step": 3, "loss": 1.5, "mfu": None})
    board.write({"step": 3, "eval/loss": 2.5})
    board.close()
    (events,) = tmp_path.glob("events.*")
    content = events.read_bytes()
    assert b"train/loss" in content
    assert b"eval/loss" in content
    assert b"train/mfu" not in content
