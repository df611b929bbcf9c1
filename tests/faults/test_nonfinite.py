"""Numbers that overflow by themselves, from settings that a user may give."""

import numpy as np

from jaxformer.train.metrics import read_rows
from tests.runs import finish, make_config, saved_arrays, start_training, write_config


def test_an_overflow_in_some_batches_is_skipped_and_counted(tmp_path):
    """A z-loss so heavy that the square of the gradient's norm, about 3e38, passes float32's
    largest number in the batches whose gradients are longest. The rate moves no weight that far."""
    config = make_config(
        tmp_path,
        train={"steps": 12, "log_every": 1, "z_loss": 1.43e17},
        optimizer={"kind": "sgd", "learning_rate": 1e-9},
        eval={"every": 12},
    )
    code, output = finish(start_training(write_config(config, tmp_path / "config.yaml")))
    assert code == 0, output
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    skipped = [row["step"] for row in rows if row["grad_norm"] is None]
    assert 1 <= len(skipped) <= 6, [row["grad_norm"] for row in rows]
    in_a_row = 0
    for row in rows:
        in_a_row = in_a_row + 1 if row["step"] in skipped else 0
        assert row["nonfinite"] == in_a_row
        assert row["loss"] is not None
    assert f"step {skipped[0]}  loss " in output
    assert "gradient norm inf: not finite, update skipped (1 in a row)" in output
    assert all(np.isfinite(array).all() for array in saved_arrays(tmp_path / "run", 12).values())


def test_a_run_that_diverges_is_stopped_with_its_last_good_checkpoint_and_the_batch(tmp_path):
    """A rate of 1e30: the first update is finite, and nothing after it."""
    config = make_config(
        tmp_path,
        train={"steps": 100, "log_every": 1, "max_nonfinite_steps": 3},
        optimizer={"kind": "sgd", "learning_rate": 1e30},
        checkpoint={"every": 1, "keep_newest": 1},
        eval={"every": 100},
    )
    code, output = finish(start_training(write_config(config, tmp_path / "config.yaml")))
    assert code == 1, output
    assert "not finite for 3 steps in a row (train.max_nonfinite_steps)" in output
    assert "the last good checkpoint is step 1" in output
    run = tmp_path / "run"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["1"]
    assert all(np.isfinite(array).all() for array in saved_arrays(run, 1).values())
    with np.load(run / "nonfinite_batch_4.npz", allow_pickle=False) as batch:
        assert batch["inputs"].shape == (4, 16)
