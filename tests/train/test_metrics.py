import pytest

from jaxformer.errors import UserError
from jaxformer.train.metrics import MetricsLog, read_rows


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
