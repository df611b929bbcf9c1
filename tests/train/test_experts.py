"""Runs of a mixture of experts: balance, micro-batches, resuming."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.batch import Batch
from jaxformer.checkpoint.lora import merged
from jaxformer.config import Config
from jaxformer.model.language_model import build_model
from jaxformer.model.parameter_paths import by_path
from jaxformer.ops import routing
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.run import load
from jaxformer.train.balance import figures, is_bias, move_biases
from jaxformer.train.program import Program, make_program, weights
from jaxformer.train.run import train as train_run
from jaxformer.train.step import TrainState
from jaxformer.train.trained import moved_biases
from tests.runs import assert_same_arrays, make_config, results, saved_arrays
from tests.train.test_loop import signal_at_step

ROWS, LENGTH = 16, 32


@pytest.fixture(autouse=True, scope="module")
def two_sizes_of_blocks():
    """Each size of a block is compiled for every product; tests/ops/test_routing.py has all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "UNITS", 2)
        yield


def program_of(balance: dict, rows: int = ROWS, **train: object) -> Program:
    config = Config.model_validate(
        {
            "model": {
                "d_model": 16,
                "num_layers": 2,
                "mixer": {"kind": "attention", "num_heads": 2},
                "ffn": {
                    "kind": "moe",
                    "num_experts": 8,
                    "experts_per_token": 2,
                    "d_hidden": 8,
                    "score": "sigmoid",
                    "router_bias": True,
                    "balance": balance,
                },
                "vocab_size": 32,
            },
            "data": {"sequence_length": LENGTH},
            "train": {"batch_size": rows, "steps": 500, **train},
            "optimizer": {"kind": "adamw", "learning_rate": 1e-3},
            "eval": {"every": 500},
        }
    )
    return make_program(config, make_mesh({}, devices=jax.devices()[:1]), 32)


def batch_of(number: int, rows: int = ROWS) -> Batch:
    """Rows of unequal lengths, the rest padding; of many rows, whole ones."""
    random = np.random.default_rng(number)
    tokens = random.integers(0, 32, (rows, LENGTH + 1)).astype(np.int32)
    shortest = 1 if rows == ROWS else LENGTH
    real = np.arange(LENGTH) < random.integers(shortest, LENGTH + 1, (rows, 1))
    ones = real.astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], np.cumsum(ones, 1) - 1, ones, real)


def train(
    program: Program, state: TrainState, steps: int, *, again: bool = False
) -> tuple[TrainState, dict]:
    """Take so many steps, of different batches, or of the first one `again` and again."""
    compiled, sharding = program.compile_train_step(), batch_sharding(program.mesh)
    for number in range(steps):
        batch = batch_of(0 if again else number, program.config.train.batch_size)
        state, metrics = compiled(state, put_batch(batch, sharding))
    return state, {name: np.asarray(value) for name, value in metrics.items() if name != "layers"}


def collapsed(program: Program) -> TrainState:
    """A state whose routers send every token to the first two experts."""
    state = program.initial_state()
    router = state.params["stack"]["groups"]["layer_0"]["ffn"]["router"]
    router["kernel"] *= 8.0
    router["bias"] = router["bias"].at[:, :2].set(2.5)
    return state


def test_a_collapsed_router_is_balanced_by_its_biases_and_not_without() -> None:
    violations = {}
    for rate in (0.002, 0.0):
        program = program_of({"bias_rate": rate}, rows=32)
        _, begun = train(program, collapsed(program), 1, again=True)
        assert begun["layers/max_violation"] == pytest.approx(3.0, abs=0.1)  # 8 / 2 − 1
        _, metrics = train(program, collapsed(program), 500, again=True)
        violations[rate] = float(metrics["layers/max_violation"])
    assert violations[0.002] < 0.1 < 2.0 < violations[0.0]


BALANCE = {"bias_rate": 0.05, "auxiliary": 0.1, "z_loss": 0.01}


def after_three(**train_options: object) -> tuple[TrainState, dict]:
    program = program_of(BALANCE, **train_options)
    return train(program, program.initial_state(), 3)


def test_micro_batches_and_rematerialisation_change_neither_counts_nor_biases() -> None:
    state, metrics = after_three()
    biases = jax.tree.leaves(state.frozen)
    assert len(biases) == 1 and np.any(biases[0])
    np.testing.assert_allclose(jnp.sum(biases[0], axis=-1), 0, atol=1e-6)
    for options in ({"accumulation": 2}, {"accumulation": 4, "remat": "full"}):
        other, same = after_three(**options)
        np.testing.assert_array_equal(jax.tree.leaves(other.frozen)[0], biases[0])
        for name in ("layers/max_violation", "layers/balance_loss", "layers/router_z", "loss"):
            np.testing.assert_allclose(same[name], metrics[name], rtol=1e-5, err_msg=name)
        for ours, theirs in zip(
            jax.tree.leaves(other.params), jax.tree.leaves(state.params), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_biases_move_by_the_sign_of_their_load_and_stay_when_nothing_is_updated() -> None:
    program = program_of({"bias_rate": 0.5})
    state = program.initial_state()
    load = jnp.asarray([[3.0, 1, 2, 2, 2, 2, 2, 2], [0.0, 0, 0, 0, 0, 0, 0, 16]])
    paths, model = by_path(state.frozen), program.config.model
    assert moved_biases(program.config, program.abstract.frozen) == set(paths)
    moved = move_biases(state.frozen, paths, load, model, jnp.bool_(True))
    [biases] = jax.tree.leaves(moved)
    np.testing.assert_allclose(biases[0], [-0.5, 0.5, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(biases[1], [0.125] * 7 + [-0.875])  # less their mean, 0.375
    stayed = move_biases(state.frozen, paths, load, model, jnp.bool_(False))
    assert not np.any(jax.tree.leaves(stayed)[0])
    kept = program_of({"bias_rate": 0.0}).config.model
    still = move_biases(state.frozen, paths, load, kept, jnp.bool_(True))
    assert not np.any(jax.tree.leaves(still)[0])


def test_frozen_biases_do_not_move() -> None:
    program = program_of({"bias_rate": 0.5}, freeze=("*/ffn/*",))
    assert moved_biases(program.config, weights(program.abstract)) == set()
    state, _ = train(program, program.initial_state(), 1)
    assert not any(np.any(leaf) for path, leaf in by_path(state.frozen).items() if is_bias(path))
    # What is frozen has no backward pass of its own: of experts, those that a token visits.
    assert 0 < program.flops_per_step < program_of({"bias_rate": 0.5}).flops_per_step


def test_figures_leave_out_layers_without_experts() -> None:
    nan = jnp.nan
    found = figures(jnp.asarray([[nan, nan, nan], [3.0, 1.0, 0.0], [1.0, 1.0, nan]]))
    np.testing.assert_allclose(found["max_violation"], [nan, 1.25, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(found["idle_experts"], [nan, 1.0, 0.0])


def test_every_expert_has_an_adapter_of_its_own_and_they_merge_to_the_same_logits() -> None:
    config = program_of({"bias_rate": 0.1}).config.model_dump() | {
        "lora": {"targets": ["*/ffn/*"]},
        "init": {"from": "runs/base"},
    }
    program = make_program(
        Config.model_validate(config), make_mesh({}, devices=jax.devices()[:1]), 32
    )
    state, metrics = train(program, program.initial_state(), 2)
    assert metrics["grad_norm"] > 0
    shapes = {path: leaf.shape for path, leaf in by_path(state.params).items()}
    of_experts = {path: shape for path, shape in shapes.items() if "experts_" in path}
    rank = program.config.lora.rank
    assert of_experts == {
        f"stack/groups/layer_0/ffn/experts_{name}/lora/{side}": (2, 8, *shape)
        for name, into, out in (("in", 16, 8), ("gate", 16, 8), ("out", 8, 16))
        for side, shape in (("a", (into, rank)), ("b", (rank, out)))
    }
    assert shapes.keys() == of_experts.keys()
    whole = weights(state)
    assert any(np.any(leaf) for path, leaf in by_path(state.params).items() if path.endswith("b"))
    tokens = jnp.asarray(batch_of(0).inputs[:2])
    with_adapters = program.model.apply({"params": whole}, tokens)
    plain = build_model(program.config.model, vocab_size=32)
    params = merged(whole, program.config.lora)
    np.testing.assert_allclose(
        plain.apply({"params": params}, tokens), with_adapters, rtol=0, atol=1e-5
    )


def test_a_run_resumes_to_the_last_bit_with_its_biases_and_generates(tmp_path, monkeypatch) -> None:
    def run_of(folder: Path) -> Config:
        folder.mkdir()
        dense, moe = {"kind": "swiglu", "d_hidden": 16}, program_of(BALANCE).config.model.ffn
        model = {"first": [{"ffn": dense}], "ffn": moe.model_dump(), "num_layers": 2}
        return make_config(
            folder,
            model=model,
            train={"steps": 4, "log_every": 1, "layer_statistics": {"every": 2}},
            checkpoint={"every": 2},
        )

    assert train_run(run_of(tmp_path / "whole")) == 0
    stopped = run_of(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        signal_at_step(patch, 2)
        assert train_run(stopped) == 75
    assert train_run(stopped) == 0
    ours, theirs = (tmp_path / name / "run" for name in ("stopped", "whole"))
    arrays = saved_arrays(ours, 4)
    assert_same_arrays(arrays, saved_arrays(theirs, 4))
    [biases] = [
        leaf
        for path, leaf in arrays.items()
        if "selection_bias" in path and path.startswith("params")
    ]
    assert np.any(biases) and not any("selection_bias" in p and "opt_state" in p for p in arrays)
    rows = [row for row in results(ours) if row.get("layer") == 1]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        loads = [row[f"expert_load/{expert}"] for expert in range(8)]
        assert sum(loads) == pytest.approx(2.0)
        assert row["max_violation"] == pytest.approx(max(loads) / 0.25 - 1, rel=1e-5)
    dense = next(row for row in results(ours) if row.get("layer") == 0)
    assert dense["max_violation"] is None  # NaN, where there are no experts
    assert len(load(ours).generate("ab", max_new_tokens=3).encode()) >= 3
