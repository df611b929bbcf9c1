"""Weights that train.freeze names stay as they are, and cost neither gradient nor state."""

import jax
import numpy as np
import pytest

from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.model.accounting import flops_per_token
from jaxformer.model.parameter_paths import by_path
from jaxformer.parallel.mesh import make_mesh
from jaxformer.run import load
from jaxformer.train.program import Program, make_program, trees
from jaxformer.train.run import train
from tests.runs import MODEL, assert_same_arrays, make_config, results, saved_arrays
from tests.train.test_loop import signal_at_step

FROZEN = ["embedding", "*/mixer/*"]


def program_of(freeze: list[str], **sections) -> Program:
    config = {"model": MODEL, "data": {"sequence_length": 12}, "train": {"freeze": freeze}}
    one = make_mesh({"data": 1}, devices=jax.devices()[:1])
    return make_program(Config.model_validate(config | sections), one, vocab_size=32)


def is_frozen(path: str) -> bool:
    return path == "embedding" or "/mixer/" in path


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "adafactor", "muon", "sgd"])
def test_no_optimizer_keeps_anything_of_frozen_weights(optimizer):
    program = program_of(FROZEN, optimizer={"kind": optimizer})
    abstract = program.abstract
    assert all(is_frozen(path) for path in by_path(abstract.frozen))
    assert not any(is_frozen(path) for path in by_path(abstract.params))
    kept = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree.flatten_with_path(abstract.opt_state)[0]
    }
    assert any("ffn/in/kernel" in path for path in kept)
    assert not any("embedding" in path or "/mixer/" in path for path in kept)


def test_a_checkpoint_has_all_weights_frozen_or_not():
    program, whole = program_of(FROZEN), program_of([])
    assert jax.tree.map(np.shape, trees(program.abstract)["params"]) == jax.tree.map(
        np.shape, trees(whole.abstract)["params"]
    )


def test_flops_are_without_the_gradients_of_frozen_matrices():
    program = program_of(FROZEN)
    matrices = 2 * 4 * 16 * 16 + 32 * 16  # the embedding is the head
    per_token = 3 * flops_per_token(program.model, 12) - 2 * matrices
    assert program.flops_per_step == per_token * program.tokens_per_step
    untied = program_of(["embedding"], model=MODEL | {"tie_embeddings": False})
    per_token = 3 * flops_per_token(untied.model, 12)  # what is looked up is no product
    assert untied.flops_per_step == per_token * untied.tokens_per_step


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["*/mixer/*", "embeding"], r"'embeding' matches no .*Did you mean 'embedding'\?"),
        (["*"], "train.freeze matches every parameter"),
    ],
)
def test_a_pattern_without_a_match_or_with_every_match_is_refused(freeze, message):
    with pytest.raises(UserError, match=message):
        program_of(freeze)


def test_frozen_weights_stay_bitwise_and_a_resumed_run_equals_one_left_alone(
    tmp_path, monkeypatch, capsys
):
    sections = {
        "train": {"steps": 6, "freeze": FROZEN},
        "eval": {"every": 3},
        "checkpoint": {"every": 1, "keep_newest": 9},
    }
    alone = make_config(tmp_path, run={"dir": str(tmp_path / "alone")}, **sections)
    assert train(alone) == 0
    assert "trained    2,384 parameters, 6,160 are frozen" in capsys.readouterr().out

    arrays = {step: saved_arrays(tmp_path / "alone", step) for step in (1, 6)}
    frozen = {path for path in arrays[6] if "embedding" in path or "mixer']" in path}
    assert len(frozen) == 2 * 5  # of params and of ema
    for path, leaf in arrays[6].items():
        assert (leaf.tobytes() == arrays[1][path].tobytes()) == (path in frozen), path
    assert load(tmp_path / "alone").params.keys() == {"embedding", "final_norm", "stack"}

    stopped = make_config(tmp_path, run={"dir": str(tmp_path / "stopped")}, **sections)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 4)
        assert train(stopped) == 75
    assert train(stopped) == 0
    assert results(tmp_path / "stopped") == results(tmp_path / "alone")
    assert_same_arrays(saved_arrays(tmp_path / "stopped", 6), arrays[6])
