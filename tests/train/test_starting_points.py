"""A run goes on from its own checkpoint, or starts from another run's weights, or from scratch."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.checkpoint.weights import find_weights
from jaxformer.data.loader import train_batches
from jaxformer.data.stores import Stores
from jaxformer.errors import UserError
from jaxformer.model.lora import LoRAConfig
from jaxformer.model.parameter_paths import by_path
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.run import load
from jaxformer.train.kept_state import find_state
from jaxformer.train.program import make_program, restored, trees, weights
from jaxformer.train.run import train
from jaxformer.train.start import begin, find_start, tell
from tests.runs import assert_same_arrays, make_config, results, saved_arrays
from tests.train.test_loop import signal_at_step


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a run of four steps, with a moving average, is `base`."""
    folder = tmp_path_factory.mktemp("starts")
    config = make_config(folder, train={"steps": 4}, checkpoint={"every": 2})
    assert train(config) == 0
    (folder / "run").rename(folder / "base")
    return folder


def program_from(folder, source="base", model=None, vocab_size=257, mesh=None, **init):
    config = make_config(
        folder, init={"from": str(folder / source), **init}, model=model or {}, mesh=mesh or {}
    )
    return make_program(config, make_mesh(config.mesh.sizes), vocab_size)


def started(program):
    start = find_start(program)
    state, origin = begin(start, program)
    return by_path(weights(state)), start, origin


def test_a_new_run_begins_with_the_average_of_another_and_a_new_optimizer(folder):
    program = program_from(folder)
    own, start, origin = started(program)
    for path, leaf in by_path(load(folder / "base").params).items():
        np.testing.assert_array_equal(own[path], leaf)
    assert origin["item"] == "ema" and origin["step"] == 4
    text = tell(start, load(folder / "base").tokenizer)
    assert text == (
        f"starts from {folder}/base/checkpoints/4, its moving average: 8,544 parameters are taken"
    )


def test_a_checkpoint_may_be_named_and_lie_on_another_mesh(folder):
    named, _, origin = started(program_from(folder, "base/checkpoints/2", mesh={"fsdp": 1}))
    assert origin["step"] == 2
    newest = load(folder / "base").params["embedding"]
    assert (np.asarray(named["embedding"]) != np.asarray(newest)).any()


def test_another_model_is_refused_path_by_path_with_what_to_do(folder):
    with pytest.raises(UserError) as raised:
        find_start(program_from(folder, model={"tie_embeddings": False}, vocab_size=300))
    message = str(raised.value)
    assert "its parameters differ in 2 places" in message
    assert "shape    embedding: float32[257, 16] in the checkpoint, float32[300, 16]" in message
    assert "missing  head float32[16, 300]: not in the checkpoint" in message
    assert "init.partial=" in message


def test_what_partial_matches_starts_fresh_and_the_rest_is_taken(folder):
    ffn = {"kind": "swiglu", "d_hidden": 32}
    program = program_from(
        folder, model={"tie_embeddings": False, "ffn": ffn}, partial=["head", "*/ffn/*"]
    )
    own, start, _ = started(program)
    scratch = by_path(weights(program.initial_state()))
    theirs = by_path(load(folder / "base").params)
    for path, leaf in own.items():
        fresh = path == "head" or "/ffn/" in path
        np.testing.assert_array_equal(leaf, scratch[path] if fresh else theirs[path])
    assert "fresh: head [16, 257]" in start.notes
    assert "fresh: stack/groups/layer_0/ffn/in/kernel [2, 16, 32]" in start.notes


def test_a_vocabulary_that_has_grown_keeps_its_rows(folder):
    program = program_from(folder, vocab_size=300, partial=["embedding"])
    own, start, _ = started(program)
    theirs = load(folder / "base").params["embedding"]
    scratch = by_path(weights(program.initial_state()))["embedding"]
    np.testing.assert_array_equal(own["embedding"][:257], theirs)
    np.testing.assert_array_equal(own["embedding"][257:], scratch[257:])
    assert start.notes == (
        "taken in part: embedding [257, 16]; the rest of [300, 16] starts fresh",
    )


def test_a_head_that_the_new_run_lacks_is_left_and_said(folder, tmp_path):
    config = make_config(
        tmp_path, model={"tie_embeddings": False}, train={"steps": 3, "ema_decay": None}
    )
    assert train(config) == 0
    with pytest.raises(UserError, match="extra    head"):
        find_start(program_from(tmp_path, "run"))
    own, start, _ = started(program_from(tmp_path, "run", partial=["head"]))
    assert "head" not in own
    assert start.notes == (
        "not taken: head [16, 257]",
        "model.tie_embeddings was False and is True now",
    )


def test_a_pattern_without_a_match_and_a_source_that_is_none_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"init.partial: 'haed' matches no .*"):
        find_start(program_from(folder, partial=["haed"]))
    with pytest.raises(UserError, match="nothing does not exist; give a run directory"):
        train(make_config(tmp_path, init={"from": str(tmp_path / "nothing")}))
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_is_pointed_out(folder, monkeypatch):
    start = find_start(program_from(folder))
    tokenizer = load(folder / "base").tokenizer
    monkeypatch.setattr("jaxformer.data.tokenizers.ByteTokenizer.fingerprint", "0123456789abcdef")
    assert "the tokenizer was bytes and is bytes now" in tell(start, tokenizer)


def test_a_run_that_began_from_another_goes_on_from_its_own_checkpoint(
    folder, tmp_path, monkeypatch, capsys
):
    shutil.copytree(folder / "base", tmp_path / "base")
    sections = {
        "train": {"steps": 4},
        "eval": {"every": 2},
        "init": {"from": str(tmp_path / "base")},
    }
    alone = make_config(tmp_path, run={"dir": str(tmp_path / "alone")}, **sections)
    assert train(alone) == 0
    assert f"starts from {tmp_path}/base/checkpoints/4" in capsys.readouterr().out

    config = make_config(tmp_path, **sections)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 3)
        assert train(config) == 75
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert f"init:\n  from: {tmp_path}/base\n  partial: []\n" in saved
    other = make_config(tmp_path, **sections | {"init": {"from": str(folder / "base")}})
    with pytest.raises(UserError, match=f"init.from: .*{tmp_path}/base.* before, .* now"):
        train(other)
    shutil.rmtree(tmp_path / "base")  # it is needed no more
    assert train(config) == 0
    assert results(tmp_path / "run") == results(tmp_path / "alone")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["init"]["from"] == str(tmp_path / "base")
    assert manifest["init"]["step"] == 4


CONSTANT = {"schedule": {"kind": "constant"}}


def kept(folder, source="base", train=None, **sections):
    """A program that keeps the optimizer's state of `source`."""
    init = {"from": str(folder / source), "state": "optimizer"}
    config = make_config(folder, init=init, train=train or {}, **sections)
    return make_program(config, make_mesh(config.mesh.sizes), 257)


def test_the_optimizers_state_and_the_average_are_kept_and_the_step_begins_at_0(folder):
    program = kept(folder)
    start = find_start(program)
    state, origin = begin(start, program)
    with Checkpoints(folder / "base" / "checkpoints", read_only=True) as checkpoints:
        saved = checkpoints.restore(4, trees(program.abstract))
    assert_same_trees(trees(state), saved)
    assert {int(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0} == {4}
    assert int(state.step) == 0
    assert (origin["item"], origin["step"]) == ("params", 4)
    assert tell(start, load(folder / "base").tokenizer) == (
        f"starts from {folder}/base/checkpoints/4: 8,544 parameters are taken, the moving average "
        f"and the optimizer's state"
    )


def test_its_first_update_is_the_next_of_the_other_run_if_nothing_changes(folder):
    program = kept(folder, optimizer=CONSTANT)
    with Checkpoints(folder / "base" / "checkpoints", read_only=True) as checkpoints:
        arrays = checkpoints.restore(4, trees(program.abstract))
        goes_on = restored(program, arrays, checkpoints.state(4))
    begins, _ = begin(find_start(program), program)
    stores = Stores(program.config.data, load(folder / "base").tokenizer)
    batch = put_batch(train_batches(stores, batch_size=4, seed=0)[4], batch_sharding(program.mesh))
    step = program.compile(None).train_step
    assert_same_trees(trees(step(begins, batch)[0]), trees(step(goes_on, batch)[0]))


def assert_same_trees(one, other):
    for (path, leaf), same in zip(
        jax.tree.flatten_with_path(one)[0], jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_array_equal(leaf, same, err_msg=str(path))


def test_an_average_that_only_one_of_the_runs_keeps_is_left_or_starts_at_the_weights(folder):
    start = find_start(kept(folder, train={"ema_decay": None}))
    assert start.notes == ("not taken: its moving average, as train.ema_decay is null",)
    program = kept(folder)
    source = find_weights(folder / "base")
    left = {name: tree for name, tree in source.manifest["trees"].items() if name != "ema"}
    start = find_state(replace(source, manifest=source.manifest | {"trees": left}), program)
    assert start.notes == ("fresh: the moving average, which starts at the weights",)
    state, _ = start.state(program)
    assert_same_trees(state.ema, state.params)


def test_a_state_that_cannot_be_kept_is_refused_with_what_to_do(folder):
    with pytest.raises(UserError, match=r"optimizer.kind is lion, and .* trained with adamw; give"):
        find_start(kept(folder, optimizer={"kind": "lion"}))
    with pytest.raises(UserError) as raised:
        find_start(kept(folder, model={"tie_embeddings": False}))
    assert "its parameters differ in 1 places" in str(raised.value)
    assert "missing  head float32[16, 257]: not in the checkpoint" in str(raised.value)
    with pytest.raises(UserError, match=r"its optimizer state differ in .*\n.*extra"):
        find_start(kept(folder, train={"freeze": ["embedding"]}))

    program, source = kept(folder), find_weights(folder / "base")
    imported = source.manifest | {"trees": {"params": source.manifest["trees"]["params"]}}
    with pytest.raises(UserError, match="has none: it has params, as an imported model does; to"):
        find_state(replace(source, manifest=imported), program)
    adapters = source.config.model_copy(update={"lora": LoRAConfig()})
    with pytest.raises(UserError, match="has adapters, which are merged into the weights"):
        find_state(replace(source, config=adapters), program)


def test_a_run_that_keeps_an_optimizers_state_goes_on_from_its_own_checkpoint(
    folder, tmp_path, monkeypatch, capsys
):
    sections = {
        "train": {"steps": 4},
        "data": {"sequence_length": 24},
        "init": {"from": str(folder / "base"), "state": "optimizer"},
    }
    alone = make_config(tmp_path, run={"dir": str(tmp_path / "alone")}, **sections)
    assert train(alone) == 0
    assert "taken, the moving average and the optimizer's state" in capsys.readouterr().out
    config = make_config(tmp_path, **sections)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 2)
        assert train(config) == 75
    assert train(config) == 0
    assert results(tmp_path / "run") == results(tmp_path / "alone")
    assert_same_arrays(saved_arrays(tmp_path / "run", 4), saved_arrays(tmp_path / "alone", 4))
