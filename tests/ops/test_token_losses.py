"""Losses per token, in chunks, against all logits at once."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxformer.ops import token_losses
from jaxformer.ops.token_losses import Heads, distillation

BATCH, LENGTH, VOCAB, TOKENS = 2, 7, 13, 11  # two entries of the vocabulary are padding
OPTIONS = {"num_tokens": TOKENS, "temperature": 2.0, "softcaps": (3.0, None)}


@pytest.fixture(autouse=True)
def small_chunks_in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(token_losses, "CHUNK_BYTES", 0)
    monkeypatch.setattr(token_losses, "CHUNK_TOKENS", 4)
    with jax.enable_x64(True):
        yield


def inputs() -> tuple:
    """The student has width 5, the teacher width 3 and a larger padded vocabulary."""
    random = np.random.default_rng(0)
    heads = Heads(random.normal(size=(5, VOCAB)), random.normal(size=(3, VOCAB + 3)))
    x, taught = (random.normal(size=(BATCH, LENGTH, width)) for width in (5, 3))
    targets = random.integers(0, TOKENS, (BATCH, LENGTH))
    return jax.tree.map(jnp.asarray, (heads, x, taught, targets, targets % 3 > 0))


def defined(heads: Heads, x: jax.Array, taught: jax.Array, targets: jax.Array, mask: jax.Array):
    logits = 3.0 * jnp.tanh(x @ heads.student / 3.0)[..., :TOKENS]
    p = jax.nn.softmax(logits)
    q_hot = jax.nn.softmax((taught @ heads.teacher)[..., :TOKENS] / 2.0)
    p_hot = jax.nn.softmax(logits / 2.0)
    chosen = jnp.take_along_axis(p, targets[..., None], -1)[..., 0]
    return {
        "loss": -jnp.sum(jnp.log(chosen) * mask),
        "divergence": 4.0 * jnp.sum(jnp.sum(q_hot * jnp.log(q_hot / p_hot), -1) * mask),
        "log_z_squared": jnp.sum(jnp.log(jnp.sum(jnp.exp(logits), -1)) ** 2 * mask),
        "tokens": jnp.sum(mask),
    }


def test_distillation_and_its_gradients_are_those_of_all_logits() -> None:
    heads, x, *rest = inputs()
    weights = {"loss": 0.3, "divergence": 0.7, "log_z_squared": 0.1, "tokens": 0.0}

    def measured(sums_of, heads: Heads, x: jax.Array) -> tuple:
        sums = sums_of(heads, x, *rest)
        return sum(weights[key] * sums[key] for key in weights), sums

    def chunked(*arrays) -> dict:
        return distillation(*arrays, **OPTIONS)

    ours, theirs = (
        jax.value_and_grad(lambda h, x, f=f: measured(f, h, x), (0, 1), has_aux=True)(heads, x)
        for f in (chunked, defined)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), ours, theirs
    )


def test_a_model_diverges_from_itself_by_nothing() -> None:
    heads, x, _, *rest = inputs()
    same = Heads(heads.student, heads.student)
    sums = distillation(same, x, x, *rest, num_tokens=TOKENS, temperature=0.5)
    assert abs(float(sums["divergence"])) < 1e-14


def test_the_logits_of_all_tokens_are_never_held() -> None:
    arrays = inputs()

    def largest(equations: list) -> int:
        own = [out.aval.size for eqn in equations for out in eqn.outvars]
        within = [largest(j.eqns) for eqn in equations for j in jaxprs_in_params(eqn.params)]
        return max([*own, *within], default=0)

    def total(heads: Heads) -> jax.Array:
        return distillation(heads, *arrays[1:], **OPTIONS)["divergence"]

    assert largest(jax.make_jaxpr(jax.grad(total))(arrays[0]).eqns) < BATCH * LENGTH * TOKENS
