"""Cross-entropy of a linear head, in chunks: the logits of all tokens are never held at once.

The gradient of each chunk is made in the forward pass, while its logits are at hand, so that
nothing is computed twice: the head costs three matrix products, as it would with all logits kept.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops.token_losses import chunk_count, join, logits_of, split


class LossSums(NamedTuple):
    """Sums over the loss tokens, in nats. Gradients flow through loss + z_loss."""

    loss: jax.Array  # []: Σ −log softmax(logits)[target]
    z_loss: jax.Array  # []: weight · Σ logsumexp(logits)²
    tokens: jax.Array  # []: how many, or the sum of their weights


def cross_entropy(
    x: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    loss_mask: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    logit_softcap: float | None = None,
    num_tokens: int | None = None,
) -> LossSums:
    """Cross-entropy and z-loss of logits = cap(x · head) against targets, where loss_mask is set.

    With label smoothing ε, gradients are those of (1 − ε) · cross-entropy + ε · the mean of
    cross-entropies against every token; the sums are those without it.

    Args:
        x: [batch, length, d_model].
        head: [d_model, vocab].
        targets: [batch, length], integers.
        loss_mask: [batch, length], booleans, or weights, which get no gradient.
        z_loss: weight of log²Z (PaLM, Chowdhery et al., 2022, arXiv:2204.02311, section 5).
        label_smoothing: ε, of Szegedy et al., 2015, arXiv:1512.00567, section 7.
        logit_softcap: cap(y) = c · tanh(y / c).
        num_tokens: entries of the vocabulary from here on are padding, without probability.

    The softmax is computed in float32, or wider if x is.
    """
    form = _Form(z_loss, label_smoothing, logit_softcap, num_tokens)
    total, cross, squares = _chunked(x, head, targets, loss_mask, form)
    cross, squares = jax.lax.stop_gradient((cross, squares))
    # total − stop_gradient(total) is zero, and carries the gradient.
    return LossSums(
        loss=cross + (total - jax.lax.stop_gradient(total)),
        z_loss=squares,
        tokens=jnp.sum(loss_mask, dtype=jnp.float32),
    )


class _Form(NamedTuple):
    """The options of a loss."""

    z_weight: float
    label_smoothing: float
    logit_softcap: float | None
    num_tokens: int | None


_Sums = tuple[jax.Array, jax.Array, jax.Array]  # what is minimized, cross-entropy, z-loss
_Gradients = tuple[jax.Array, jax.Array]  # of x, of the head


class _Chunk(NamedTuple):
    """A piece of every row, flattened. Stacked, each has the leading axis [chunks]."""

    x: jax.Array  # [tokens, d_model]
    targets: jax.Array  # [tokens]
    loss_mask: jax.Array  # [tokens], booleans or weights


def _chunk_sums(
    chunk: _Chunk, head: jax.Array, form: _Form
) -> tuple[_Sums, tuple[jax.Array, jax.Array]]:
    """The sums, and the logits with their log Z [tokens, 1]."""
    logits = logits_of(chunk.x, head, form.logit_softcap, form.num_tokens)
    log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    at_target = jnp.take_along_axis(logits, chunk.targets[:, None], axis=-1)
    cross = jnp.sum(_weighted(log_z - at_target, chunk.loss_mask))
    squares = form.z_weight * jnp.sum(_weighted(jnp.square(log_z), chunk.loss_mask))
    total = cross + squares
    if form.label_smoothing:
        mean = jnp.mean(logits[:, : form.num_tokens], axis=-1, keepdims=True)
        further = _weighted(at_target - mean, chunk.loss_mask)
        total += form.label_smoothing * jnp.sum(further)
    return (total, cross, squares), (logits, log_z)


def _weighted(x: jax.Array, loss_mask: jax.Array) -> jax.Array:
    """x [tokens, n] times the tokens' weights; what is masked need not be finite."""
    weights = loss_mask[:, None]
    if weights.dtype != jnp.bool_:
        x = x * weights
    return jnp.where(weights != 0, x, 0.0)


def _chunk_gradient(chunk: _Chunk, logits: jax.Array, log_z: jax.Array, form: _Form) -> jax.Array:
    """d(what is minimized)/d(x · head): [tokens, vocab], in x's type."""
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    wanted = (ids == chunk.targets[:, None]).astype(logits.dtype)
    if form.label_smoothing:
        count = form.num_tokens or len(ids)
        wanted = (1 - form.label_smoothing) * wanted
        wanted += jnp.where(ids < count, form.label_smoothing / count, 0)
    gradient = jnp.exp(logits - log_z) * (1.0 + 2.0 * form.z_weight * log_z) - wanted
    if form.logit_softcap is not None:
        slope = 1.0 - jnp.square(logits / form.logit_softcap)
        gradient *= jnp.where(jnp.isneginf(logits), 0.0, slope)
    return _weighted(gradient, chunk.loss_mask).astype(chunk.x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(
    x: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    loss_mask: jax.Array,
    form: _Form,
) -> _Sums:
    """The sums; only the first has a gradient."""
    batch, length = targets.shape
    count = chunk_count(batch, length, head.shape[1])

    def add(sums: _Sums, chunk: _Chunk) -> tuple[_Sums, None]:
        new, _ = _chunk_sums(chunk, head, form)
        return jax.tree.map(jnp.add, sums, new), None

    zero = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    chunks = _Chunk(*(split(part, count) for part in (x, targets, loss_mask)))
    return jax.lax.scan(add, (zero, zero, zero), chunks)[0]


def _chunked_forward(
    x: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    loss_mask: jax.Array,
    form: _Form,
) -> tuple[_Sums, _Gradients]:
    batch, length = targets.shape
    count = chunk_count(batch, length, head.shape[1])
    zero = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))

    def add(
        carry: tuple[_Sums, jax.Array], chunk: _Chunk
    ) -> tuple[tuple[_Sums, jax.Array], jax.Array]:
        sums, head_gradient = carry
        new, (logits, log_z) = _chunk_sums(chunk, head, form)
        gradient = _chunk_gradient(chunk, logits, log_z, form)
        head_gradient += jnp.matmul(chunk.x.T, gradient, preferred_element_type=head_gradient.dtype)
        x_gradient = jnp.matmul(gradient, head.T.astype(x.dtype))
        return (jax.tree.map(jnp.add, sums, new), head_gradient), x_gradient

    chunks = _Chunk(*(split(part, count) for part in (x, targets, loss_mask)))
    (sums, head_gradient), x_gradient = jax.lax.scan(
        add, ((zero, zero, zero), jnp.zeros_like(head)), chunks
    )
    return sums, (join(x_gradient, batch, length), head_gradient)


def _chunked_backward(
    form: _Form,
    residuals: _Gradients,
    cotangents: _Sums,
) -> tuple[jax.Array, jax.Array, None, None]:
    x_gradient, head_gradient = residuals
    scale = cotangents[0]
    return x_gradient * scale.astype(x_gradient.dtype), head_gradient * scale, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
