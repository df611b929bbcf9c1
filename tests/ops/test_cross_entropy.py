"""The chunked loss against the plain formula on all logits, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import token_losses
from jaxformer.ops.cross_entropy import LossSums, cross_entropy

BATCH, LENGTH, D_MODEL, VOCAB = 2, 7, 5, 11


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def case(length: int = LENGTH) -> tuple:
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (BATCH, length, D_MODEL))
    head = jax.random.normal(keys[1], (D_MODEL, VOCAB))
    targets = jax.random.randint(keys[2], (BATCH, length), 0, VOCAB)
    return x, head, targets, jax.random.bernoulli(keys[3], 0.7, (BATCH, length))


def plain(
    x, head, targets, loss_mask, *, z_loss=0.0, logit_softcap=None, label_smoothing=0.0
) -> LossSums:
    logits = x @ head
    if logit_softcap is not None:
        logits = logit_softcap * jnp.tanh(logits / logit_softcap)
    log_z = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    loss = log_z - jnp.sum(logits * jax.nn.one_hot(targets, VOCAB), axis=-1)
    even = log_z - jnp.mean(logits, axis=-1)
    smoothed = (1 - label_smoothing) * loss + label_smoothing * even
    loss = jax.lax.stop_gradient(loss - smoothed) + smoothed  # its gradient, the other's value
    return LossSums(
        jnp.sum(loss * loss_mask), z_loss * jnp.sum(log_z**2 * loss_mask), jnp.sum(loss_mask)
    )


@pytest.mark.parametrize(
    "chunk_bytes", [2**25, 4 * BATCH * VOCAB * 3, 1], ids=["one", "odd", "each"]
)
@pytest.mark.parametrize(
    "options",
    [{}, {"z_loss": 0.1}, {"z_loss": 0.1, "logit_softcap": 2.0, "label_smoothing": 0.2}],
    ids=str,
)
def test_sums_and_gradients_are_those_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, options: dict
) -> None:
    monkeypatch.setattr(token_losses, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(token_losses, "CHUNK_TOKENS", 1)
    x, head, targets, loss_mask = case()

    def mean(loss, x, head):
        sums = loss(x, head, targets, loss_mask, **options)
        return (sums.loss + sums.z_loss) / sums.tokens, sums

    results = [
        jax.value_and_grad(lambda x, head, f=f: mean(f, x, head), (0, 1), has_aux=True)(x, head)
        for f in (cross_entropy, plain)
    ]
    (_, actual), gradients = results[0]
    (_, expected), expected_gradients = results[1]
    np.testing.assert_allclose(actual, expected, rtol=1e-13)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize("logit_softcap", [None, 2.0])
def test_padding_of_the_vocabulary_has_no_probability_and_no_gradient(logit_softcap) -> None:
    x, head, targets, loss_mask = case()
    targets %= 8

    def mean(x, head, **options):
        sums = cross_entropy(
            x, head, targets, loss_mask, z_loss=0.1, logit_softcap=logit_softcap, **options
        )
        return (sums.loss + sums.z_loss) / sums.tokens

    loss, (of_x, of_head) = jax.value_and_grad(lambda x, head: mean(x, head, num_tokens=8), (0, 1))(
        x, head
    )
    expected, (expected_x, expected_head) = jax.value_and_grad(mean, (0, 1))(x, head[:, :8])
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    np.testing.assert_allclose(of_x, expected_x, rtol=0, atol=1e-14)
    np.testing.assert_allclose(of_head[:, :8], expected_head, rtol=0, atol=1e-14)
    assert not of_head[:, 8:].any()


def test_nothing_counts_where_everything_is_masked() -> None:
    x, head, targets, loss_mask = case()
    total = lambda x: cross_entropy(x, head, targets, loss_mask & False, z_loss=0.1).loss  # noqa: E731
    value, gradient = jax.value_and_grad(total)(x)
    assert value == 0 and not gradient.any()


def test_all_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_losses, "CHUNK_BYTES", 4 * BATCH * VOCAB * 10)
    monkeypatch.setattr(token_losses, "CHUNK_TOKENS", 1)
    x, head, targets, loss_mask = case(length=1000)

    def mean(x, head):
        sums = cross_entropy(x, head, targets, loss_mask)
        return sums.loss / sums.tokens

    compiled = jax.jit(jax.grad(mean, (0, 1))).lower(x, head).compile()
    # x in its chunks and back, and 10 tokens' logits, but not 1,000 tokens' logits in float64.
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * BATCH * 1000 * VOCAB


def test_logits_of_bfloat16_activations_are_float32() -> None:
    x, head, targets, loss_mask = case()
    sums = cross_entropy(x.astype(jnp.bfloat16), head.astype(jnp.float32), targets, loss_mask)
    assert sums.loss.dtype == jnp.float32
