from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.pipeline import (
    Pipeline,
    check_repetitions,
    make_pipeline,
    possible_micro_batches,
    run_stages,
)
from jaxformer.parallel.rules import use_mesh

WIDTH = 3


def of_layers(
    weights: jax.Array, rows: tuple[jax.Array, ...], keys: dict[str, jax.Array]
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """x ← x + tanh(W x), scaled by a number that each row brings along; and Σ x² per layer."""
    x, scale = rows

    def layer(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x + scale[:, None] * jnp.tanh(x @ weight)
        return x, jnp.sum(x * x)

    x, squares = jax.lax.scan(layer, x, weights)
    return (x, scale), squares


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 2), (2, 6), (3, 3), (3, 6), (6, 12)])
def test_stages_give_what_the_layers_give_one_after_another(stages, micro_batches):
    """Outputs in their places, the gradients of weights and rows, and what layers add up."""
    random = np.random.default_rng(0)
    weights = jnp.asarray(random.normal(size=(6, WIDTH, WIDTH)), jnp.float32)
    rows = tuple(
        jnp.asarray(random.normal(size=shape), jnp.float32) for shape in [(12, WIDTH), (12,)]
    )
    target = random.normal(size=(12, WIDTH))

    def loss(run, weights, rows):
        (y, _), squares = run(weights, rows)
        return jnp.sum(y * target), (y, squares)

    piped = partial(run_stages, of_layers, pipeline=Pipeline(stages, micro_batches), keys={})
    with use_mesh(make_mesh({}, devices=jax.devices()[:1])):
        measured = [
            jax.jit(jax.value_and_grad(partial(loss, run), (0, 1), has_aux=True))(weights, rows)
            for run in (piped, partial(of_layers, keys={}))
        ]
    for ours, theirs in zip(*map(jax.tree.leaves, measured), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_stage_has_another_key_for_every_micro_batch():
    def note(
        weights: jax.Array, seen: jax.Array, keys: dict[str, jax.Array]
    ) -> tuple[jax.Array, tuple[()]]:
        return jnp.roll(seen, 1, axis=-1).at[:, 0].set(jax.random.bits(keys["dropout"])), ()

    keys = {"dropout": jax.random.key(0)}
    with use_mesh(make_mesh({}, devices=jax.devices()[:1])):
        piped = jax.jit(partial(run_stages, note, pipeline=Pipeline(3, 6), keys=keys))
        seen, _ = piped(jnp.zeros((3, 1)), jnp.zeros((12, 3), jnp.uint32))  # [rows, stages]
    assert len(np.unique(seen)) == 3 * 6
    _, rows = np.unique(seen, axis=0, return_counts=True)
    assert rows.tolist() == [2] * 6  # of each micro-batch


def test_the_bubble_is_what_stages_wait_for_each_other():
    assert Pipeline(4, 8).turns == 11
    assert str(Pipeline(4, 8)) == "4 stages, 8 micro-batches, bubble 27.3%"


def test_micro_batches_go_over_all_stages_and_shards():
    sizes = {"data": 2, "stage": 2, "fsdp": 2, "tensor": 2}
    assert possible_micro_batches(sizes, 48) == [2, 4, 6, 12]  # 12 rows a shard
    assert possible_micro_batches(sizes, 50) == []
    assert possible_micro_batches({"data": 8}, 48) == []


def test_as_many_micro_batches_as_rows_allow_are_chosen_up_to_four_a_stage():
    assert make_pipeline({"stage": 2, "fsdp": 2}, 48, None) == Pipeline(2, 8)
    assert make_pipeline({"stage": 2, "fsdp": 2}, 8, None) == Pipeline(2, 4)
    assert make_pipeline({"stage": 2, "fsdp": 2}, 48, 24) == Pipeline(2, 24)
    assert make_pipeline({"stage": 1, "fsdp": 2}, 48, None) is None


def test_a_number_of_micro_batches_that_the_rows_do_not_go_into_is_refused():
    with pytest.raises(UserError) as error:
        make_pipeline({"stage": 2, "data": 4}, 32, 3)
    assert str(error.value) == (
        "train.pipeline_micro_batches is 3, but 32 rows at once over mesh.stage 2 cannot be "
        "split into so many; allowed: 2, 4, 8"
    )
    with pytest.raises(UserError, match="is 3, but mesh.stage is 1, and without stages there is"):
        make_pipeline({"stage": 1, "data": 4}, 32, 3)


def test_repetitions_that_stages_cannot_share_are_refused():
    check_repetitions(4, num_layers=25, pattern_length=3)  # a rest of one layer is no repetition
    with pytest.raises(UserError) as error:
        check_repetitions(4, num_layers=18, pattern_length=3)
    assert str(error.value) == (
        "mesh.stage is 4, but model.num_layers 18 repeats the pattern of 3 6 times, which 4 does "
        "not divide; the nearest model.num_layers that fits: 24"
    )
