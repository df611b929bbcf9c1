"""Connectionist temporal classification: what is said, without knowing when (Graves et al., 2006,
doi:10.1145/1143844.1143891)."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, NonNegativeInt

from jaxformer.batch import Batch
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import RecordingsConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.outputs import LinearConfig
from jaxformer.objectives.base import Evaluated, Loss, ObjectiveConfig, PyTree, Reference
from jaxformer.objectives.requirements import check_last_layer
from jaxformer.ops.cross_entropy import LossSums
from jaxformer.ops.ctc import ctc_loss
from jaxformer.ops.edit_distance import edit_distances, spoken
from jaxformer.ops.token_losses import by_chunk, logits_of
from jaxformer.parallel.own_tokens import by_rows, over_rows
from jaxformer.parallel.rules import pad_vocabulary

BYTES_AT_ONCE = 2**28  # of the logits of the rows whose losses are computed together
IMPOSSIBLE = -1e9  # the logit of an id that pads the vocabulary: −∞ · 0 would not be a number


class CTCSums(NamedTuple):
    """Float32 sums over the recordings of a batch whose labels fit into their frames, and how many
    recordings there are."""

    loss: jax.Array  # −log p(labels | frames)
    log_z_squared: jax.Array  # over frames
    labels: jax.Array
    too_long: jax.Array  # recordings whose labels do not fit
    recordings: jax.Array


class CTCConfig(ObjectiveConfig):
    """−log p(labels | frames), where p sums over all ways to give every frame a label or the blank
    of which the labels remain once repetitions are merged and blanks are dropped. The loss is per
    label. Recordings whose labels, with a blank between equal ones, are more than their frames have
    no such way: they are left out, and `too_long` is their share. A row may hold several recordings
    in training, and one in an evaluation.
    """

    kind: Literal["ctc"] = "ctc"
    needs = "model.inputs frames or raw, model.outputs linear"
    decoder = "all at once: jaxformer predict"
    instead = "predict RUN FILE"
    figure = "label_error_rate"
    is_causal = False
    sees_whole_rows = True
    orders = ("causal", "full")

    blank: NonNegativeInt | None = Field(
        None,
        description="the id that stands for no label; null for the tokenizer's last one, which "
        "ends a text in the tokenizers bytes and ids",
    )

    def check(self, model: ModelConfig) -> None:
        check_last_layer(self.kind, model)
        if not isinstance(model.inputs, RecordingsConfig):
            raise ValueError(
                f"train.objective is ctc, which reads recordings, but model.inputs is "
                f"{model.inputs.kind}; give model.inputs={{kind: frames}}"
            )
        if not isinstance(model.outputs, LinearConfig):
            raise ValueError(
                f"train.objective is ctc, which gives every frame a label, but model.outputs is "
                f"{model.outputs.kind}; give model.outputs={{kind: linear}}"
            )

    def blank_of(self, model: LanguageModel) -> int:
        """The blank's id.

        Raises:
            UserError: the model has no such id.
        """
        last = num_labels(model) - 1
        if self.blank is not None and self.blank > last:
            raise UserError(
                f"train.objective.blank is {self.blank}, but the model's ids end with {last}; "
                f"allowed: 0 to {last}, or null"
            )
        return last if self.blank is None else self.blank

    def loss(
        self,
        model: LanguageModel,
        params: PyTree,
        batch: Batch,
        *,
        z_loss: float,
        rngs: dict[str, jax.Array],
        reference: Reference | None,
    ) -> Loss:
        rows = (batch.inputs, batch.positions, batch.segment_ids)
        x, head, layers = model.apply({"params": params}, *rows, method="read", rngs=rngs)
        sums = self._sums(model, x, head, batch)
        reported, total = {"loss": sums.loss}, sums.loss
        if z_loss:
            reported["z_loss"] = z_loss * sums.log_z_squared
            total += reported["z_loss"]
        means = {"too_long": (sums.too_long, sums.recordings)}
        return Loss(total, sums.labels, reported, layers, means)

    def evaluate(self, model: LanguageModel, params: PyTree, batch: Batch) -> Evaluated:
        """`label_error_rate` is that of the likeliest path, edits per label, of the recordings that
        have a loss."""
        rows = (batch.inputs, batch.positions, batch.segment_ids)
        x, head, layers = model.apply({"params": params}, *rows, method="read")
        sums = self._sums(model, x, head, batch)
        path, real = likeliest(model, x, head), jnp.asarray(batch.segment_ids != 0)
        labels, mask = jnp.asarray(batch.targets), jnp.asarray(batch.loss_mask)
        edits = edit_distances(path, spoken(path, real, self.blank_of(model)), labels, mask)
        edits = jnp.sum(jnp.where(fit(batch)[:, 1], edits, 0), dtype=jnp.float32)
        found = LossSums(sums.loss, jnp.zeros(()), sums.labels)
        return Evaluated(found, layers, {"label_error_rate": edits})

    def _sums(self, model: LanguageModel, x: jax.Array, head: jax.Array, batch: Batch) -> CTCSums:
        """Of a batch, given the outputs' input of its frames and the head."""
        blank = self.blank_of(model)

        def of_own_rows(head: jax.Array, *rows: jax.Array) -> tuple[jax.Array, ...]:
            def of_row(row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
                x, recordings, labels, numbers = row
                logits = _logits(model, x, head)
                log_z = jax.nn.logsumexp(logits, axis=-1)
                loss = ctc_loss(logits, recordings, labels, numbers, blank)
                return loss, jnp.sum(log_z**2 * (recordings != 0))

            x, _, labels, numbers = rows
            bytes_of_row = 4 * head.shape[1] * (x.shape[1] + labels.shape[1])
            at_once = min(len(x), max(1, BYTES_AT_ONCE // bytes_of_row))
            of_rows = of_row if at_once == len(x) else jax.checkpoint(of_row, prevent_cse=False)
            loss, log_z_squared = map(jnp.sum, jax.lax.map(of_rows, rows, batch_size=at_once))
            return loss, log_z_squared, jnp.sum(numbers != 0, dtype=loss.dtype)

        labels, fits = jnp.asarray(batch.targets), fit(batch)
        recordings, numbers = (
            jnp.where(jnp.take_along_axis(fits, each, axis=1), each, 0)
            for each in (jnp.asarray(batch.segment_ids), numbers_of(batch.loss_mask))
        )
        rows = (x, recordings, labels, numbers)
        loss, log_z_squared, said = over_rows(of_own_rows)(pad_vocabulary(head), *rows)
        there = _counts(batch.segment_ids, fits.shape[1])[:, 1:] > 0
        too_long, every = (
            jnp.sum(each, dtype=loss.dtype) for each in (there & ~fits[:, 1:], there)
        )
        return CTCSums(loss, log_z_squared, said, too_long, every)


def numbers_of(label_mask: jax.Array | np.ndarray) -> jax.Array:
    """The number of the recording in its row that each label is of, 0 where the mask is not set:
    [rows, labels], int32. Between two recordings' labels there is one place that is not set."""
    before = jnp.cumsum(~jnp.asarray(label_mask), axis=1, dtype=jnp.int32)
    return jnp.where(label_mask, 1 + before, 0)


def fit(batch: Batch) -> jax.Array:
    """Whether the labels of each recording, with a blank between equal ones, are no more than its
    frames: [rows, frames + 1], by the recording's number in its row, with 0 for what is of none."""
    labels, numbers = jnp.asarray(batch.targets), numbers_of(batch.loss_mask)
    size = batch.segment_ids.shape[1] + 1
    again = (labels[:, 1:] == labels[:, :-1]) & (numbers[:, 1:] == numbers[:, :-1])
    repeated = jnp.where(again, numbers[:, 1:], 0)
    needed = _counts(numbers, size) + _counts(repeated, size)
    return (needed <= _counts(batch.segment_ids, size)).at[:, 0].set(False)


def _counts(numbers: jax.Array | np.ndarray, size: int) -> jax.Array:
    """How often each number below `size` is in a row: [rows, size]."""
    return jax.vmap(partial(jnp.bincount, length=size))(jnp.asarray(numbers))


def likeliest(model: LanguageModel, x: jax.Array, head: jax.Array) -> jax.Array:
    """The likeliest label or blank of every frame [rows, frames], given the outputs' input of the
    frames and the head."""

    def of_rows(head: jax.Array, x: jax.Array) -> jax.Array:
        def of_chunk(x: jax.Array) -> jax.Array:
            return jnp.argmax(_logits(model, x, head), axis=-1)

        return by_chunk(of_chunk, head.shape[1], x)

    return by_rows(of_rows)(pad_vocabulary(head), x)


def num_labels(model: LanguageModel) -> int:
    """How many ids have a probability, the blank among them."""
    return model.num_tokens or model.vocab_size


def _logits(model: LanguageModel, x: jax.Array, head: jax.Array) -> jax.Array:
    """x [..., d_model], head [d_model, vocab] → [..., vocab]."""
    cut = num_labels(model) if num_labels(model) < head.shape[1] else None
    return jnp.maximum(logits_of(x, head, model.config.logit_softcap, cut), IMPOSSIBLE)
