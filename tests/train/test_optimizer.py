import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.cases import CASES, D_MODEL
from contracts.contract import build, one_document
from flax.core import meta
from jax.sharding import PartitionSpec as Names

from jaxformer.config import (
    AdafactorConfig,
    AdamWConfig,
    Config,
    LionConfig,
    MuonConfig,
    SGDConfig,
)
from jaxformer.model.accounting import abstract_parameters
from jaxformer.model.language_model import build_model
from jaxformer.parallel.rules import logical_axes, path_name
from jaxformer.train.optimizer import decay_mask, make_optimizer, matrix_sides
from tests.runs import MODEL

AXES = {
    "embedding": Names("vocab", "d_model"),
    "norm": Names("d_model"),
    "layers": {
        "query": Names("layers", "d_model", "heads", "head_dim"),
        "query_bias": Names("layers", "heads", "head_dim"),
        "output": Names("layers", "heads", "head_dim", "d_model"),
        "ffn": Names("layers", "d_model", "d_hidden"),
        "norm": Names("layers", "d_model"),
    },
}
SHAPES = {
    "embedding": (10, 8),
    "norm": (8,),
    "layers": {
        "query": (3, 8, 2, 4),
        "query_bias": (3, 2, 4),
        "output": (3, 2, 4, 8),
        "ffn": (3, 8, 20),
        "norm": (3, 8),
    },
}


def random_tree(seed: int):
    random = np.random.default_rng(seed)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32), SHAPES, is_leaf=is_shape
    )


def one_update(config, params, gradients):
    optimizer = make_optimizer(config, AXES)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    return updates


def test_weight_decay_is_on_matrices_alone_however_they_are_stacked():
    assert decay_mask(AXES) == {
        "embedding": True,
        "norm": False,
        "layers": {
            "query": True,
            "query_bias": False,
            "output": True,
            "ffn": True,
            "norm": False,
        },
    }


def test_norms_and_biases_of_a_model_do_not_decay_and_kernels_do():
    model = {
        **MODEL,
        "mixer": {"kind": "attention", "num_heads": 2, "qkv_bias": True, "qk_norm": True},
        "norm": {"kind": "layer", "bias": True},
        "positions": {"kind": "relative"},
        "pattern": [{}, {}],
        "num_layers": 3,
        "tie_embeddings": False,
    }
    axes = logical_axes(
        abstract_parameters(
            build_model(Config.model_validate({"model": model}).model, vocab_size=9)
        )
    )
    for path, decays in jax.tree.flatten_with_path(decay_mask(axes))[0]:
        name = path_name(path)
        assert decays == name.endswith(("kernel", "embedding", "head")), name


def every_mixer() -> dict[str, dict]:
    """The parameters of every case of the contract, as shapes with their axes."""

    def parameters(case):
        mixer = build(case)
        x = jnp.zeros((1, 2, D_MODEL))
        return jax.eval_shape(
            lambda: mixer.init(jax.random.key(0), x, one_document(2, batch=1))["params"]
        )

    with jax.enable_x64(True):
        return {name: parameters(case) for name, case in CASES.items()}


def test_every_optimizer_takes_every_mixer_and_only_its_matrices_decay():
    for name, boxed in every_mixer().items():
        axes, params = logical_axes(boxed), meta.unbox(boxed)
        for path, decays in jax.tree.flatten_with_path(decay_mask(axes))[0]:
            full = path_name(path)
            is_matrix = full.endswith(("kernel", "recurrent")) and "conv/" not in full
            assert decays == is_matrix, (name, full)
        for config in (AdamWConfig(), LionConfig(), AdafactorConfig(), SGDConfig(), MuonConfig()):
            optimizer = make_optimizer(config, axes)
            state = jax.eval_shape(optimizer.init, params)
            updates, _ = jax.eval_shape(optimizer.update, params, state, params)
            assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_sides_of_a_matrix_take_heads_together():
    assert matrix_sides(("layers", "d_model", "kv_heads", "head_dim")) == ((1,), (2, 3))
    assert matrix_sides(("heads", "head_dim", "d_model")) == ((0, 1), (2,))
    assert matrix_sides(("layers", "d_model", "steps", "heads", "head_dim")) == ((1,), (2, 3, 4))
    assert matrix_sides(("layers", "gates", "heads", "head_input", "head_dim")) == ((3,), (4,))
    assert matrix_sides(("heads", "head_dim")) is None
    assert matrix_sides(("width", "d_hidden")) is None
    assert matrix_sides(()) is None
    with pytest.raises(ValueError, match="has 3 sides"):
        matrix_sides(("d_model", "heads", "d_hidden"))


@pytest.mark.parametrize(
    "config",
    [
        AdamWConfig(learning_rate=0.1, weight_decay=0.5),
        LionConfig(learning_rate=0.1, weight_decay=0.5),
        AdafactorConfig(learning_rate=0.1, weight_decay=0.5),
        SGDConfig(learning_rate=0.1, weight_decay=0.5),
        MuonConfig(learning_rate=0.1, adamw_learning_rate=0.1, weight_decay=0.5),
    ],
    ids=lambda config: config.kind,
)
def test_decay_is_the_rate_times_the_weight_and_apart_from_the_gradient(config):
    params, gradients = random_tree(0), random_tree(1)
    with_decay = one_update(config, params, gradients)
    without = one_update(config.model_copy(update={"weight_decay": 0.0}), params, gradients)
    expected = jax.tree.map(
        lambda p, decays: -0.1 * 0.5 * p if decays else 0 * p, params, decay_mask(AXES)
    )
    difference = jax.tree.map(lambda a, b: a - b, with_decay, without)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), difference, expected)


def test_adamw_takes_a_first_step_of_the_learning_rate_against_the_gradient():
    gradients = random_tree(1)
    updates = one_update(
        AdamWConfig(learning_rate=0.1, weight_decay=0.0), random_tree(0), gradients
    )
    expected = jax.tree.map(lambda g: -0.1 * g / (jnp.abs(g) + 1e-8), gradients)
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-5), updates, expected)


def test_muon_orthogonalises_every_stacked_layer_on_its_own():
    config = MuonConfig(learning_rate=1.0, weight_decay=0.0)
    updates = one_update(config, random_tree(0), random_tree(1))["layers"]
    for name, matrix_shape in (("query", (8, 8)), ("output", (8, 8)), ("ffn", (8, 20))):
        gain = np.sqrt(max(1.0, matrix_shape[1] / matrix_shape[0]))
        for layer in range(3):
            values = np.linalg.svd(
                np.asarray(updates[name][layer]).reshape(matrix_shape) / gain, compute_uv=False
            )
            # Five Newton-Schulz steps with Jordan's coefficients end in this range, not at 1.
            assert values.min() > 0.3
            assert values.max() < 1.3


def test_muon_gives_a_stacked_layer_the_update_it_would_get_alone():
    config = MuonConfig(learning_rate=1.0, weight_decay=0.0)
    params, gradients = random_tree(0), random_tree(1)
    stacked = one_update(config, params, gradients)["layers"]["query"][1]

    matrix = gradients["layers"]["query"][1].reshape(8, 8)
    optimizer = make_optimizer(config, {"w": Names("d_model", "d_hidden")})
    weights = {"w": params["layers"]["query"][1].reshape(8, 8)}
    alone, _ = optimizer.update({"w": matrix}, optimizer.init(weights), weights)
    np.testing.assert_allclose(np.asarray(stacked).reshape(8, 8), alone["w"], atol=1e-5)


def test_muon_keeps_the_gradients_singular_vectors():
    config = MuonConfig(learning_rate=1.0, weight_decay=0.0)
    gradients = random_tree(1)
    update = np.asarray(one_update(config, random_tree(0), gradients)["layers"]["ffn"][2])
    u, _, vt = np.linalg.svd(np.asarray(gradients["layers"]["ffn"][2]), full_matrices=False)
    rotated = u.T @ update @ vt.T
    assert np.abs(rotated - np.diag(np.diag(rotated))).max() < 1e-4
    assert np.diag(rotated).max() < 0  # downhill


def test_muon_leaves_embeddings_norms_and_biases_to_adamw():
    config = MuonConfig(learning_rate=1.0, adamw_learning_rate=0.25, weight_decay=0.0)
    updates = one_update(config, random_tree(0), random_tree(1))
    for update in (
        updates["embedding"],
        updates["norm"],
        updates["layers"]["norm"],
        updates["layers"]["query_bias"],
    ):
        assert np.abs(update) == pytest.approx(0.25, rel=1e-4)
