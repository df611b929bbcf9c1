"""Connectionist temporal classification: what is said, without knowing when (Graves et al., 2006,
doi:10.1145/1143844.1143891)."""

import jax
import jax.numpy as jnp
import numpy as np

NEVER = -1e30  # the log-probability of what cannot be: sums and differences of it stay numbers
LATER = np.iinfo(np.int32).max  # the recording of labels that fill up a row


def ctc_loss(
    logits: jax.Array, recordings: jax.Array, labels: jax.Array, numbers: jax.Array, blank: int
) -> jax.Array:
    """Σ −log p(labels of a recording | its frames) over the recordings of one row, where p sums
    over all ways to give every frame a label or the blank of which the labels remain once
    repetitions are merged and blanks are dropped.

    With a_s the probability that label s is the last one of the frames so far and was said in the
    last of them, and b_s that s labels are said and the last frame is blank, a frame t makes

        a_s ← p_t(label s) · (a_s + b_s + a_{s−1}, where label s − 1 is another one)
        b_s ← p_t(blank) · (b_s + a_{s−1})

    and only those remain in which every label before is of an earlier recording or of t's, and
    every label behind of t's or a later one. So a recording's labels are said in its own frames,
    and a row has the product of what its recordings have alone.

    Args:
        logits: [frames, vocab].
        recordings: int32 [frames], ascending where they are not 0; frames of 0 count for nothing.
        labels: [labels], those of each recording behind those of the one before.
        numbers: int32 [labels], the recording of each label; labels of 0 count for nothing.

    Returns:
        A number; where labels do not fit into their frames it is large, and has no meaning.
    """
    numbers = jnp.where(numbers == 0, LATER, numbers)
    order = jnp.argsort(numbers == LATER, stable=True)  # labels that count come first
    labels, numbers = jnp.asarray(labels)[order], numbers[order]
    log_probs = jax.nn.log_softmax(logits)
    chosen = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    # A TPU would round the log-probabilities to bfloat16.
    of_labels = jnp.matmul(log_probs, chosen.T, precision="highest")  # [frames, labels]
    before = jnp.pad(numbers, (1, 0))
    behind = jnp.pad(numbers, (0, 1), constant_values=LATER)
    other = (labels[1:] != labels[:-1]) | (numbers[1:] != numbers[:-1])
    never = jnp.full((1,), NEVER, logits.dtype)

    def read(paths: tuple[jax.Array, jax.Array], frame: tuple) -> tuple[tuple, None]:
        ends, rests = paths  # a [labels], b [labels + 1]
        of_label, of_blank, recording = frame
        said = jnp.logaddexp(rests, jnp.concatenate([never, ends]))
        skipped = jnp.concatenate([never, jnp.where(other, ends[:-1], NEVER)])
        begun = jnp.logaddexp(jnp.logaddexp(ends, rests[:-1]), skipped)
        longer = jnp.where(numbers == recording, of_label + begun, NEVER)
        resting = jnp.where((before <= recording) & (recording <= behind), of_blank + said, NEVER)
        counts = recording != 0
        return (jnp.where(counts, longer, ends), jnp.where(counts, resting, rests)), None

    nothing = jnp.full(before.shape, NEVER, logits.dtype)
    start = (nothing[1:], nothing.at[0].set(0))  # no label is said
    frames = (of_labels, log_probs[:, blank], recordings)
    (ends, rests), _ = jax.lax.scan(read, start, frames)
    count = jnp.sum(numbers != LATER)
    whole = jnp.logaddexp(rests, jnp.concatenate([never, ends]))
    return -whole[count]
