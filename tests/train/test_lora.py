"""Adapters: of any mixer's projections, alone in gradients and checkpoints, merged to be used."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.cases import CASES, D_MODEL
from contracts.contract import build, one_document
from flax.core import meta
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec

from jaxformer.batch import Batch
from jaxformer.checkpoint.lora import fingerprint, merged
from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.cli import main
from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.model.accounting import abstract_parameters, count_parameters, flops_per_token
from jaxformer.model.language_model import build_model
from jaxformer.model.lora import A, B, LoRAConfig, adapted, adapter_paths
from jaxformer.model.parameter_paths import by_path, from_paths, join
from jaxformer.parallel.mesh import make_mesh
from jaxformer.run import load
from jaxformer.train.metrics import read_rows
from jaxformer.train.optimizer import matrix_sides
from jaxformer.train.program import make_program, weights
from jaxformer.train.run import train
from jaxformer.train.start import begin, find_start
from tests.runs import MODEL, assert_same_arrays, make_config, results, saved_arrays
from tests.train.test_loop import signal_at_step

MAMBA2 = {"kind": "mamba2", "expansion": 1.0, "head_dim": 8, "state_size": 8}
MODELS = {
    "attention": {},
    "mamba2": {"mixer": MAMBA2},
    "gated_delta": {"mixer": {"kind": "gated_delta", "num_heads": 2, "head_dim": 8}},
    "hybrid": {"pattern": [{"mixer": MAMBA2}, {}], "num_layers": 3},
}
EVERYTHING = LoRAConfig(rank=2, targets=("*/mixer/*", "*/ffn/*"))
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 12))
TUNED = {"rank": 2, "alpha": 8.0, "dropout": 0.25}


def models(name: str, **options) -> tuple:
    """A model without adapters and the same one with some."""
    config = Config.model_validate({"model": MODEL | MODELS[name]}).model
    plain = build_model(config, vocab_size=32, **options)
    return plain, plain.clone(lora=EVERYTHING)


def parameters(model, seed: int = 0):
    return meta.unbox(jax.jit(model.init)(jax.random.key(seed), TOKENS)["params"])


def with_random_b(params):
    leaves = by_path(params)
    for path in adapter_paths(params):
        key = jax.random.key(len(path))
        leaves[path] = 0.1 * jax.random.normal(key, leaves[path].shape)
    return from_paths(leaves)


def test_adapters_begin_as_the_base():
    plain, with_adapters = models("hybrid")
    base, params = parameters(plain), parameters(with_adapters)
    with jax.disable_jit():  # compiled, the two programs may round differently
        fresh = with_adapters.apply({"params": join(params, base)}, TOKENS)
        before = plain.apply({"params": base}, TOKENS)
    np.testing.assert_array_equal(fresh, before)


@pytest.mark.parametrize("name", MODELS)
def test_adapters_merge_to_the_same_logits(name):
    plain, with_adapters = models(name)
    trained = with_random_b(parameters(with_adapters))
    before = jax.jit(plain.apply)({"params": parameters(plain)}, TOKENS)
    unmerged = jax.jit(with_adapters.apply)({"params": trained}, TOKENS)
    folded = jax.jit(plain.apply)({"params": merged(trained, EVERYTHING)}, TOKENS)
    assert np.abs(unmerged - before).max() > 1e-2
    np.testing.assert_allclose(folded, unmerged, atol=1e-5)


def test_the_same_seed_gives_the_same_weights_with_adapters_or_without():
    plain, with_adapters = models("hybrid")
    own = by_path(parameters(with_adapters))
    for path, leaf in by_path(parameters(plain)).items():
        np.testing.assert_array_equal(own[path], leaf)


def test_adapters_lie_as_the_sides_of_their_kernels_in_every_mixer():
    everything = LoRAConfig(rank=3, targets=("*",))
    none = {"slstm"}  # its maps are block-diagonal, no projections
    for name, case in CASES.items():
        mixer = build(case)

        def boxed(mixer=mixer):
            x = jnp.zeros((1, 2, D_MODEL))
            init = lambda: mixer.init(jax.random.key(0), x, one_document(2, batch=1))  # noqa: E731
            return jax.eval_shape(init)["params"]

        with jax.enable_x64(True):
            without = boxed()
            with adapted(everything):
                params = boxed()
        leaves = by_path(meta.unbox(params))
        axes = by_path(meta.get_partition_spec(params))
        found = [path for path in adapter_paths(leaves) if path.endswith(A)]
        assert bool(found) == (mixer.config.kind not in none), name
        for path in found:
            module = path.removesuffix(A)
            names = axes[f"{module}kernel"]
            inputs, outputs = (tuple(names[i] for i in side) for side in matrix_sides(names))
            assert axes[path] == PartitionSpec(*inputs, "adapter")
            assert axes[module + B] == PartitionSpec("adapter", *outputs)
        folded = jax.eval_shape(lambda tree: merged(tree, everything), meta.unbox(params))
        assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, meta.unbox(without))


def tuning_program(**train_options):
    config = {
        "model": MODEL,
        "data": {"sequence_length": 12},
        "train": {"batch_size": 4, "unroll_layers": False, **train_options},
        "init": {"from": "runs/base"},
        "lora": {"rank": 2, "dropout": 0.5},
    }
    config = Config.model_validate(config)
    return make_program(config, make_mesh({"data": 1}, devices=jax.devices()[:1]), 32)


def matrix_products(jaxpr) -> set[tuple[int, ...]]:
    """The shapes of the results of all products, in loops and branches too."""
    shapes = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            shapes.add(tuple(sorted(equation.outvars[0].aval.shape)))
        for inner in jaxprs_in_params(equation.params):
            shapes |= matrix_products(inner)
    return shapes


def batch(rows: int = 4) -> Batch:
    random = np.random.default_rng(3)
    tokens = random.integers(0, 32, (rows, 13)).astype(np.int32)
    ones = np.ones((rows, 12), np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], np.cumsum(ones, 1) - 1, ones, ones > 0)


def test_gradients_and_optimizer_state_are_of_adapters_alone():
    program = tuning_program()
    adapters = adapter_paths(weights(program.abstract))
    assert by_path(program.abstract.params).keys() == adapters
    mu, nu = program.abstract.opt_state[0].mu, program.abstract.opt_state[0].nu
    assert by_path(mu).keys() == by_path(nu).keys() == adapters
    step = jax.make_jaxpr(program.train_step)(program.abstract, batch())
    of_ffn = (MODEL["d_model"], MODEL["ffn"]["d_hidden"])  # what only its gradient has
    assert of_ffn not in matrix_products(step.jaxpr)
    whole = make_program(
        program.config.model_copy(update={"lora": None}), program.mesh, vocab_size=32
    )
    step = jax.make_jaxpr(whole.train_step)(whole.abstract, batch())
    assert of_ffn in matrix_products(step.jaxpr)


def test_flops_count_adapters_and_no_gradient_of_what_they_adapt():
    program = tuning_program()
    model = program.model
    plain = model.clone(lora=None)
    adapters = count_parameters(model) - count_parameters(plain)
    assert adapters == 2 * 4 * 2 * (16 + 16)  # layers, projections, rank, both sides
    assert flops_per_token(model, 12) == flops_per_token(plain, 12) + 2 * adapters
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * 24) + 16 * 32
    expected = 3 * flops_per_token(model, 12) - 2 * matrices
    assert program.flops_per_step == expected * 4 * 12


def test_dropout_is_a_function_of_seed_and_step_and_off_in_evaluation():
    def results_of(**options) -> list[tuple[float, ...]]:
        """The loss in evaluation; loss and norm of the gradient at steps 0, 1 and 0."""
        program = tuning_program(**options)
        state, compiled = program.initial_state(), program.compile(4)
        state = state.replace(params=jax.tree.map(lambda leaf: leaf + 0.1, state.params))
        seen = [(float(compiled.eval_step(weights(state), batch()).loss) / (4 * 12), 0.0)]
        for step in (0, 1, 0):
            copy = jax.tree.map(jnp.copy, state.replace(step=jnp.int32(step)))
            _, metrics = compiled.train_step(copy, batch())
            seen.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        return seen

    usual = results_of()
    evaluated, first, second, again = usual
    assert again == first
    assert len({evaluated, first, second}) == 3
    np.testing.assert_allclose(results_of(remat="full"), usual, rtol=1e-5)  # the same masks again
    assert results_of(accumulation=2)[1] not in (first, second)
    assert results_of(seed=1)[1] != first


def test_a_target_that_is_no_projection_is_refused_with_the_nearest():
    config = tuning_program().config
    for target, nearest in (
        ("stack/groups/layer_0/mixer/qeury/kernel", "stack/groups/layer_0/mixer/query/kernel"),
        ("*/mixer_norm/*", None),
    ):
        lora = LoRAConfig(targets=("*/ffn/*", target))
        with pytest.raises(UserError, match="lora.targets: .* matches no") as raised:
            make_program(config.model_copy(update={"lora": lora}), make_mesh({"data": 1}), 32)
        assert nearest is None or f"Did you mean '{nearest}'?" in str(raised.value)


def test_a_fingerprint_changes_with_any_weight_and_its_place():
    params = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.ones(4)}}
    one = fingerprint(params)
    assert one == fingerprint(jax.tree.map(jnp.copy, params))
    swapped = params | {"a": params["a"][::-1]}
    nudged = params | {"a": params["a"].at[1, 2].add(1e-6)}
    renamed = {"a": params["a"], "b": {"d": params["b"]["c"]}}
    assert len({one, *map(fingerprint, (swapped, nudged, renamed))}) == 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of four steps, in whose folder adapters are trained."""
    folder = tmp_path_factory.mktemp("base")
    short = {"steps": 4, "ema_decay": None}
    assert train(make_config(folder, train=short, optimizer={"schedule": {}})) == 0
    return (folder / "run").rename(folder / "base").parent


def tuning(folder, name: str) -> Config:
    return make_config(
        folder,
        init={"from": str(folder / "base")},
        lora=TUNED,
        train={"steps": 6, "ema_decay": None},
        eval={"every": 3},
        checkpoint={"every": 3},
        run={"dir": str(folder / name)},
    )


@pytest.fixture(scope="module")
def tuned(base):
    assert train(tuning(base, "tuned")) == 0
    return base / "tuned"


def test_a_checkpoint_holds_adapters_alone_and_names_its_base(base, tuned):
    arrays = saved_arrays(tuned, 6)
    assert all("lora" in path or "count" in path for path in arrays)
    with Checkpoints(tuned / "checkpoints", read_only=True) as checkpoints:
        origin = checkpoints.manifest(6)["init"]
    with Checkpoints(base / "base" / "checkpoints", read_only=True) as checkpoints:
        config = make_config(base, train={"ema_decay": None})
        boxed = abstract_parameters(build_model(config.model, vocab_size=257))
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            meta.unbox(boxed),
        )
        params = checkpoints.restore(4, {"params": wanted})["params"]
    assert origin == {
        "from": str(base / "base"),
        "step": 4,
        "item": "params",
        "fingerprint": fingerprint(params),
    }


def test_a_run_of_adapters_learns_and_is_loaded_merged(tuned, capsys):
    rows = [row for row in read_rows(tuned / "metrics.jsonl") if "eval/loss" in row]
    assert rows[-1]["eval/loss"] < rows[0]["eval/loss"]
    run = load(tuned)
    assert not adapter_paths(run.params) and run.model.lora is None
    assert len(run.generate("ab", max_new_tokens=4)) > 0
    capsys.readouterr()
    assert main(["eval", str(tuned), "--json", "eval.batches=2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["loss"] == pytest.approx(rows[-1]["eval/loss"], rel=1e-5)


def test_a_run_may_start_from_adapters_merged_with_their_base(base, tuned):
    config = make_config(base, init={"from": str(tuned)}, run={"dir": str(base / "whole")})
    program = make_program(config, make_mesh({"data": 1}, devices=jax.devices()[:1]), 257)
    state, origin = begin(find_start(program), program)
    jax.tree.map(np.testing.assert_array_equal, weights(state), load(tuned).params)
    assert (origin["from"], origin["step"]) == (str(tuned), 6)


def test_resumed_adapters_equal_those_never_stopped_bitwise(base, tuned, monkeypatch):
    config = tuning(base, "stopped")
    for stop_at in (2, 4):
        with monkeypatch.context() as patch:
            signal_at_step(patch, stop_at)
            assert train(config) == 75
    assert train(config) == 0
    assert results(base / "stopped") == results(tuned)
    assert_same_arrays(saved_arrays(base / "stopped", 6), saved_arrays(tuned, 6))


def test_a_base_that_is_gone_or_has_changed_is_refused_by_name(base, tuned, tmp_path):
    """Of a run that keeps no copy, as those of before there were any."""
    shutil.copytree(base / "base", tmp_path / "moved")
    params = load(tuned).params
    shutil.copytree(tuned, tmp_path / "tuned", ignore=shutil.ignore_patterns("base"))
    tuned = tmp_path / "tuned"
    (base / "base").rename(base / "away")
    try:
        with pytest.raises(
            UserError, match=f"step 4 of {base}/base, is gone: .*init.from="
        ) as raised:
            load(tuned)
        assert f"{tuned}/checkpoints/6 holds adapters" in str(raised.value)
        moved = load(tuned, [f"init.from={tmp_path}/moved"])
        assert main(["generate", str(tuned), "--prompt", "a", f"init.from={tmp_path}/moved"]) == 0
        out = str(tmp_path / "exported")
        assert main(["export", str(tuned), out, f"init.from={tmp_path}/moved"]) == 0
    finally:
        (base / "away").rename(base / "base")
    jax.tree.map(np.testing.assert_array_equal, moved.params, params)

    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "4")
    changed = make_config(
        base,
        train={"steps": 4, "ema_decay": None, "seed": 1},
        optimizer={"schedule": {}},
        run={"dir": str(tmp_path / "changed")},
    )
    assert train(changed) == 0
    with pytest.raises(UserError, match=rf"{tmp_path}/changed/checkpoints/4 have changed since"):
        load(tuned, [f"init.from={tmp_path}/changed"])
    with pytest.raises(UserError, match="has no checkpoint of step 4"):
        load(tuned, [f"init.from={tmp_path}/moved"])
