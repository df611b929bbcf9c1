import hashlib
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxformer.checkpoint.integrity import read_manifest, wrong_hashes
from jaxformer.checkpoint.manager import Checkpoints, placed
from jaxformer.errors import RunFailed, UserError

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


def test_an_array_lies_in_pieces_so_that_another_mesh_reads_no_more_than_it_holds(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("jaxformer.checkpoint.manager.CHUNK", 1024)
    trees = {"params": {"w": jnp.arange(64.0 * 64).reshape(64, 64)}}
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, trees)
        restored = checkpoints.restore(1, like(trees))
    assert (restored["params"]["w"] == trees["params"]["w"]).all()
    metadata = ocp.StandardCheckpointer().metadata(tmp_path / "1" / "params").item_metadata.tree
    assert metadata["w"].storage.chunk_shape == (16, 16)


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


def test_multiples_of_a_step_are_always_kept(tmp_path):
    for steps in ((1, 2, 3, 4, 5), (6, 7)):  # also after a restart
        with Checkpoints(tmp_path, keep_newest=1, keep_best=1, keep_every=2) as checkpoints:
            for step in steps:
                save(checkpoints, step, loss=10.0 - step if step < 4 else 20.0)
    assert Checkpoints(tmp_path).steps() == [2, 3, 4, 6, 7]


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


def test_a_part_of_a_tree_is_refused_and_not_loaded_in_part(tmp_path):
    trees = make_trees()
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, trees)
        with pytest.raises(UserError, match=r"extra +b float32\[3\]: only in the checkpoint"):
            checkpoints.restore(1, like({"params": {"a": trees["params"]["a"]}}))
        more = {"params": trees["params"] | {"c": jnp.zeros(1)}}
        with pytest.raises(UserError, match=r"missing +c float32\[1\]: not in the checkpoint"):
            checkpoints.restore(1, like(more))


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
    with pytest.raises(RunFailed) as error:
        ask_for_a_second(checkpoints)
    assert str(error.value) == (
        f"step 2 could not be saved in {tmp_path}: No space left on device. "
        "The newest checkpoint is that of step 1; fix the cause, and run the same command again to "
        "resume"
    )
    monkeypatch.undo()
    assert Checkpoints(tmp_path).newest_good() == 1


@pytest.fixture
def saved(tmp_path):
    """Steps 1 to 3, with their losses."""
    with Checkpoints(tmp_path, keep_newest=3) as checkpoints:
        for step, loss in ((1, 5.0), (2, 4.0), (3, 3.0)):
            save(checkpoints, step, loss=loss)
    return tmp_path


def files_of(step: Path) -> dict[str, bytes]:
    return {
        file.relative_to(step).as_posix(): file.read_bytes()
        for file in step.rglob("*")
        if file.is_file()
    }


def largest_file(step: Path) -> Path:
    return max(
        (file for file in step.rglob("d/*") if file.is_file()), key=lambda f: f.stat().st_size
    )


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
@pytest.mark.parametrize("which", ["an array", "the manifest", "the tree"])
def test_a_damaged_newest_step_is_named_and_skipped(saved, capsys, harm, which):
    newest = saved / "3"
    files = {"an array": largest_file(newest), "the manifest": newest / "manifest.json"}
    file = files.get(which, newest / "params" / "_METADATA")
    harm(file)
    before = files_of(newest)
    with Checkpoints(saved, read_only=True) as checkpoints:
        assert checkpoints.newest_good() == 2
        warning = capsys.readouterr().err
        assert f"warning: checkpoint {newest} is damaged: {file.relative_to(newest)}" in warning
        assert "step 2 is used, and nothing is deleted\n" in warning
        with pytest.raises(UserError, match=f"checkpoint {newest} is damaged"):
            checkpoints.restore(3, like(make_trees()))
    assert files_of(newest) == before


def test_a_damaged_step_is_kept_beside_the_one_that_takes_its_name(saved, capsys):
    for name in ("3.damaged", "3.damaged1"):
        flip(largest_file(saved / "3"))
        before = files_of(saved / "3")
        with Checkpoints(saved, keep_newest=2) as checkpoints:
            assert checkpoints.newest_good() == 2
            assert f"(it is now {saved / name})" in capsys.readouterr().err
            save(checkpoints, 3, make_trees(7.0))
        assert files_of(saved / name) == before
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.newest_good() == 3
        assert checkpoints.restore(3, like(make_trees()))["params"]["b"].tolist() == [0, 7, 14]


def test_a_damaged_step_takes_no_place_among_the_newest_or_the_best(saved):
    cut(largest_file(saved / "3"))
    with Checkpoints(saved, keep_newest=2, keep_best=1) as checkpoints:
        for step in (4, 5):
            save(checkpoints, step, loss=float(step))
    assert {each.name for each in saved.iterdir()} == {"2", "3", "4", "5"}


def test_where_every_step_is_damaged_none_is_taken(saved):
    for step in (1, 2, 3):
        flip(largest_file(saved / str(step)))
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(
            UserError, match=rf"every checkpoint in {saved} is damaged \(1, 2, 3\); restore one"
        ),
    ):
        checkpoints.newest_good()


def test_a_fault_says_what_is_expected_and_what_is_found(saved):
    step = saved / "2"
    file = largest_file(step)
    flip(file)
    cut(step / "params" / "_METADATA")
    (step / "params" / "_sharding").unlink()
    manifest = read_manifest(step)["files"]
    size = manifest["params/_METADATA"]["bytes"]
    name = file.relative_to(step).as_posix()
    assert set(map(str, wrong_hashes(step, manifest))) == {
        f"params/_METADATA: expected {size} bytes, found {size - 1}",
        f"params/_sharding: expected {manifest['params/_sharding']['bytes']} bytes, found no file",
        f"{name}: expected sha256 {manifest[name]['sha256']}, "
        f"found sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}",
    }


def test_every_file_but_orbaxs_notes_on_the_save_has_a_hash(saved):
    listed = set(read_manifest(saved / "1")["files"])
    notes = {"manifest.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert listed == files_of(saved / "1").keys() - notes
    for note in notes - {"manifest.json"}:
        (saved / "1" / note).write_text("{")  # nothing is read from them
    with Checkpoints(saved) as checkpoints:
        checkpoints.restore(1, like(make_trees()))


def test_a_step_killed_before_its_manifest_has_no_name_yet(tmp_path, monkeypatch):
    def killed(*_: object) -> None:
        names = [each.name for each in tmp_path.iterdir()]
        raise OSError(f"killed while there was {names}")

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr("jaxformer.checkpoint.integrity.replace_text", killed)
    save(checkpoints, 1)
    with pytest.raises(RunFailed, match=r"killed while there was \['1.orbax-checkpoint-tmp'\]"):
        checkpoints.wait()
    with Checkpoints(tmp_path) as reopened:
        assert reopened.newest_good() is None


@pytest.mark.parametrize(
    ("version", "advice"),
    [(1, "which has no hashes"), (3, "install a newer jaxformer")],
)
def test_another_format_is_refused_and_not_skipped(saved, version, advice):
    manifest = saved / "3" / "manifest.json"
    if version == 1:
        manifest.unlink()
        (saved / "3" / "manifest").mkdir()
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": version}))
    with pytest.raises(UserError, match=f"{saved / '3'} has checkpoint format {version}.*{advice}"):
        Checkpoints(saved)
