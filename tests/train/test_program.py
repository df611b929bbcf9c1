"""How runs share programs, and when layers are unrolled."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import Config
from jaxformer.data.loader import train_batches
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from jaxformer.parallel.mesh import make_mesh
from jaxformer.parallel.rules import batch_sharding, put_batch
from jaxformer.train.program import make_program, unrolls
from tests.runs import MODEL, make_config


def test_learning_rates_and_seeds_share_a_program_and_act_as_if_alone(tmp_path):
    mesh, losses, compiled = make_mesh({}), {}, []
    tokenizer = load_tokenizer("bytes")
    for rate, seed in ((1e-3, 0), (3e-2, 0), (1e-3, 1), (1e-3, 0)):
        config = make_config(
            tmp_path,
            train={"seed": seed},
            optimizer={"learning_rate": rate, "schedule": {"warmup_steps": 0}},
            run={"dir": str(tmp_path / f"{rate}-{seed}")},
        )
        program = make_program(config, mesh, tokenizer.vocab_size)
        compiled.append(program.compile(None).train_step)
        state = program.initial_state()
        batch = train_batches(Stores(config.data, tokenizer), batch_size=4, seed=0)[0]
        for _ in range(3):
            state, metrics = compiled[-1](state, put_batch(batch, batch_sharding(mesh)))
        np.testing.assert_allclose(metrics["learning_rate"], rate * 0.75, rtol=0.3)
        losses.setdefault((rate, seed), []).append(float(metrics["loss"]))
    assert len(set(map(id, compiled))) == 1
    assert len({values[0] for values in losses.values()}) == 3
    assert losses[1e-3, 0][0] == losses[1e-3, 0][1]


def test_another_optimizer_or_length_is_another_program(tmp_path):
    mesh = make_mesh({})
    plain = make_config(tmp_path)
    others = [
        make_config(tmp_path, optimizer={"weight_decay": 0.2}),
        make_config(tmp_path, data={"sequence_length": 8}),
        make_config(tmp_path, train={"steps": 13}),
    ]
    program = make_program(plain, mesh, 257)
    assert make_program(plain, mesh, 257)._made is program._made
    for other in others:
        assert make_program(other, mesh, 257)._made is not program._made
    assert jax.tree.leaves(program.abstract.rates)[0].shape == ()


def on(stages: int, **train) -> bool:
    mesh = SimpleNamespace(shape={"stage": stages}, devices=np.array(jax.devices()[:1]))
    return unrolls(Config.model_validate({"model": MODEL, "train": train}), mesh)


def test_layers_are_unrolled_on_cpu_but_not_in_stages():
    assert on(1)
    assert not on(2)


def test_stages_that_are_to_be_unrolled_are_refused():
    with pytest.raises(UserError) as error:
        on(2, unroll_layers=True)
    assert str(error.value) == (
        "train.unroll_layers is true, but mesh.stage is 2, and a stage scans its layers; leave it "
        "at auto"
    )


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_no_type_of_a_state_or_a_step_depends_on_jax_enable_x64(tmp_path, kind):
    program = make_program(make_config(tmp_path, optimizer={"kind": kind}), make_mesh({}), 257)
    batch = program._abstract_batch(4)
    with jax.enable_x64(True):
        rates = {key: jnp.float32(0) for key in program.abstract.rates}
        state = jax.eval_shape(program.init, jax.random.key(0), {}, rates)
        after, metrics = jax.eval_shape(program.train_step, program.abstract, batch)
    for found in (state, after):
        types = jax.tree.map(
            lambda leaf, expected: leaf.dtype == expected.dtype, found, program.abstract
        )
        assert all(jax.tree.leaves(types))
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} <= {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
