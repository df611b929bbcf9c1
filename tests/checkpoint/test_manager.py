import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer.checkpoint.manager import Checkpoints, placed
from jaxformer.schema import UserError

OPTIMIZER = optax.chain(optax.scale_by_adam(), optax.scale(-1.0))


def make_trees(scale: float = 1.0) -> dict:
    params = {"b": jnp.arange(3.0) * scale, "a": {"w": jnp.full((2, 3), scale, jnp.bfloat16)}}
    return {"params": params, "opt_state": OPTIMIZER.init(params)}


def like(trees: dict) -> dict:
    return placed(trees, jax.tree.map(lambda leaf: leaf.sharding, trees))


def save(checkpoints: Checkpoints, step: int, trees: dict | None = None, loss: float | None = None):
    state = {"step": step, "data": {"next_batch": step}, "nonfinite": 0}
    checkpoints.save(step, trees or make_trees(step), state, {"config": {"a": 1}}, loss)


def test_what_is_restored_is_what_was_saved_in_structure_dtype_and_bits(tmp_path):
    trees = make_trees(0.1)
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 7, trees)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 7
        assert checkpoints.state(7) == {"step": 7, "data": {"next_batch": 7}, "nonfinite": 0}
        restored = checkpoints.restore(7, like(trees))
    assert jax.tree.structure(restored) == jax.tree.structure(trees)
    for new, old in zip(jax.tree.leaves(restored), jax.tree.leaves(trees), strict=True):
        assert new.dtype == old.dtype
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


def test_steps_that_follow_a_save_do_not_reach_into_it(tmp_path):
    update = jax.jit(lambda w: w + 1, donate_argnums=0)
    weights = jnp.zeros((512, 512))
    with Checkpoints(tmp_path, keep_newest=3) as checkpoints:
        for step in range(3):
            save(checkpoints, step, {"params": {"w": weights}})
            for _ in range(20):
                weights = update(weights)
        wanted = like({"params": {"w": jnp.zeros((512, 512))}})
        for step in range(3):
            found = checkpoints.restore(step, wanted)["params"]["w"]
            assert np.unique(found).tolist() == [20.0 * step]


def test_one_tree_can_be_restored_without_the_others(tmp_path):
    trees = make_trees()
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, trees)
        assert list(checkpoints.restore(1, like({"params": trees["params"]}))) == ["params"]
        with pytest.raises(UserError, match="has no 'ema'; it has params, opt_state"):
            checkpoints.restore(1, like({"ema": trees["params"]}))


def test_newest_and_best_are_kept_apart(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: None, 6: 6.0}
    with Checkpoints(tmp_path, keep_newest=2, keep_best=2) as checkpoints:
        for step, loss in losses.items():
            save(checkpoints, step, loss=loss)
    with Checkpoints(tmp_path, keep_newest=2, keep_best=2) as checkpoints:
        assert checkpoints.steps() == [2, 3, 5, 6]
        save(checkpoints, 7, loss=1.5)  # the losses of before are known after a restart
    assert Checkpoints(tmp_path).steps() == [2, 6, 7]


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path):
    with Checkpoints(tmp_path, keep_newest=1, keep_best=1) as checkpoints:
        for step, loss in ((1, 2.0), (2, float("nan")), (3, float("inf")), (4, 3.0)):
            save(checkpoints, step, loss=loss)
    assert Checkpoints(tmp_path).steps() == [1, 4]


def test_another_dtype_is_refused_and_not_cast(tmp_path):
    trees = make_trees()
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, trees)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trees["params"])
        with pytest.raises(
            UserError, match=r"dtype +a/w: bfloat16\[2, 3\] in the checkpoint, float32"
        ):
            checkpoints.restore(1, like({"params": wide}))


def test_what_a_killed_save_leaves_is_no_checkpoint_and_is_cleared_away(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert Checkpoints(tmp_path, read_only=True).latest() == 1
    assert unfinished.exists()  # it may be another process's save
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        save(checkpoints, 2)
    assert not unfinished.exists()
    assert Checkpoints(tmp_path).steps() == [2]


def ask_for_a_second(checkpoints: Checkpoints) -> None:
    for _ in range(100):
        checkpoints.raise_failed_save()
        time.sleep(0.01)


def test_a_failed_save_in_the_background_is_raised_soon(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    checkpoints.wait()
    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr("os.rename", fail)
    save(checkpoints, 2)
    with pytest.raises(OSError, match="No space left"):
        ask_for_a_second(checkpoints)
    monkeypatch.undo()
    assert Checkpoints(tmp_path).steps() == [1]


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr("jaxformer.checkpoint.manager.FORMAT", 2)
        save(checkpoints, 1)
        monkeypatch.undo()
        with pytest.raises(
            UserError, match="has checkpoint format 2; this version reads formats up to 1"
        ):
            checkpoints.manifest(1)
