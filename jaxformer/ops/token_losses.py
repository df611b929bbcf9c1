"""What a linear head computes for each token, in chunks, so that not all logits are held at once.

Here a chunk's logits are recomputed for its gradient, so that any function of the results has one;
`cross_entropy` saves that product where only their plain sum is needed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# A chunk's float32 logits fit a CPU's cache unless that is too few tokens: the gradient of the head
# is read and written once per chunk, which takes longer than its product for fewer.
CHUNK_BYTES = 2**25
CHUNK_TOKENS = 2**11


def by_chunk(of_chunk: Callable[..., Any], vocab: int, *arrays: jax.Array) -> Any:
    """`of_chunk(*arrays)`, computed on pieces [tokens, ...] of the arrays [batch, length, ...].

    Args:
        of_chunk: arrays [tokens, ...] → a tree of arrays [tokens, ...]; what else it reads is
            closed over.
        vocab: how many logits per token there are at once.

    Returns:
        The tree, of arrays [batch, length, ...].
    """
    batch, length = arrays[0].shape[:2]
    count = chunk_count(batch, length, vocab)
    parts = tuple(split(array, count) for array in arrays)
    found = jax.lax.map(jax.checkpoint(lambda chunk: of_chunk(*chunk), prevent_cse=False), parts)
    return jax.tree.map(lambda pieces: join(pieces, batch, length), found)


class TokenScores(NamedTuple):
    """A model's scores of each target, [batch, length]."""

    log_probs: jax.Array  # log softmax(logits)[target] in nats, float32
    greedy: jax.Array  # whether the target is the likeliest token


def token_scores(
    x: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    logit_softcap: float | None = None,
    num_tokens: int | None = None,
) -> TokenScores:
    """Log-probability of each target, and whether it is the likeliest, for logits cap(x · head).

    Args:
        x: [batch, length, d_model].
        head: [d_model, vocab].
        targets: [batch, length], integers.
        logit_softcap: cap(y) = c · tanh(y / c).
        num_tokens: entries of the vocabulary from here on are padding, without probability.
    """

    def score(x: jax.Array, targets: jax.Array) -> TokenScores:
        logits = logits_of(x, head, logit_softcap, num_tokens)
        log_probs = at_targets(logits, targets) - jax.nn.logsumexp(logits, axis=-1)
        return TokenScores(log_probs, jnp.argmax(logits, axis=-1) == targets)

    return by_chunk(score, head.shape[1], x, targets)


class TokenLosses(NamedTuple):
    """Of each token, [batch, length], float32 at least."""

    loss: jax.Array  # −log softmax(logits)[target] in nats
    log_z_squared: jax.Array  # logsumexp(logits)²


def token_losses(
    x: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    logit_softcap: float | None = None,
    num_tokens: int | None = None,
) -> TokenLosses:
    """The cross-entropy of each token, and log²Z; arguments as in `token_scores`."""

    def of_chunk(x: jax.Array, targets: jax.Array) -> TokenLosses:
        logits = logits_of(x, head, logit_softcap, num_tokens)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return TokenLosses(log_z - at_targets(logits, targets), jnp.square(log_z))

    return by_chunk(of_chunk, head.shape[1], x, targets)


class Heads(NamedTuple):
    """The heads of a student and its teacher, each [d_model, vocab]."""

    student: jax.Array
    teacher: jax.Array


def distillation(
    heads: Heads,
    x: jax.Array,
    taught: jax.Array,
    targets: jax.Array,
    loss_mask: jax.Array,
    *,
    num_tokens: int,
    temperature: float,
    softcaps: tuple[float | None, float | None] = (None, None),
) -> dict[str, jax.Array]:
    """Sums in nats over the tokens where loss_mask is set, p = softmax(logits) of the student:

    loss Σ −log p[target];  divergence Σ T² KL(softmax(teacher / T) ‖ softmax(student / T));
    log_z_squared Σ log²Z of the student;  tokens, how many.

    Args:
        x, taught: what the heads of student and teacher read, [batch, length, their d_model].
        targets, loss_mask: [batch, length].
        num_tokens: entries of both vocabularies from here on are padding, without probability.
        temperature: T.
        softcaps: of the student's logits and of the teacher's.
    """

    def of_chunk(x: jax.Array, taught: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        logits = logits_of(x, heads.student, softcaps[0])[:, :num_tokens]
        wanted = logits_of(taught, heads.teacher, softcaps[1])[:, :num_tokens]
        log_z = jax.nn.logsumexp(logits, axis=-1)
        log_p = jax.nn.log_softmax(logits / temperature, axis=-1)
        log_q = jax.nn.log_softmax(wanted / temperature, axis=-1)
        return {
            "loss": log_z - at_targets(logits, targets),
            "divergence": temperature**2 * jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1),
            "log_z_squared": jnp.square(log_z),
        }

    found = by_chunk(of_chunk, 2 * heads.student.shape[1], x, taught, targets)
    sums = {key: jnp.sum(jnp.where(loss_mask, value, 0.0)) for key, value in found.items()}
    return sums | {"tokens": jnp.sum(loss_mask, dtype=jnp.float32)}


def logits_of(
    x: jax.Array,
    head: jax.Array,
    logit_softcap: float | None,
    num_tokens: int | None = None,
    bias: jax.Array | float = 0.0,
) -> jax.Array:
    """cap(x · head + bias): [..., d_model] → [..., vocab], float32 at least; −∞ for padding."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    logits = jnp.matmul(x, head.astype(x.dtype), preferred_element_type=wide) + bias
    if logit_softcap is not None:
        logits = logit_softcap * jnp.tanh(logits / logit_softcap)
    if num_tokens is not None:
        index = jnp.arange(head.shape[1], dtype=jnp.int32)
        logits = jnp.where(index < num_tokens, logits, -jnp.inf)
    return logits


def at_targets(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[tokens, vocab] at targets [tokens] → [tokens]."""
    return jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]


def chunk_count(batch: int, length: int, vocab: int) -> int:
    tokens = max(CHUNK_TOKENS, CHUNK_BYTES // (4 * vocab))
    return min(length, -(-batch * length // tokens))


def split(array: jax.Array, count: int) -> jax.Array:
    """[batch, length, ...] → [count, batch · length / count, ...], cut along the length so that
    rows stay on the devices that hold them; a last short piece is filled with zeros."""
    batch, length = array.shape[:2]
    size = -(-length // count)
    padding = [(0, 0)] * array.ndim
    padding[1] = (0, count * size - length)
    pieces = jnp.pad(array, padding).reshape(batch, count, size, *array.shape[2:])
    return jnp.moveaxis(pieces, 1, 0).reshape(count, batch * size, *array.shape[2:])


def join(pieces: jax.Array, batch: int, length: int) -> jax.Array:
    """Undoes `split`."""
    count, rest = pieces.shape[0], pieces.shape[2:]
    rows = jnp.moveaxis(pieces.reshape(count, batch, -1, *rest), 0, 1)
    return rows.reshape(batch, -1, *rest)[:, :length]
