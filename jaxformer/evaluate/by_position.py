"""Loss and accuracy of a run on rows of any length, overall and by position."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.batch import Batch
from jaxformer.config import DataConfig
from jaxformer.data.loader import validation_batches
from jaxformer.data.stores import Stores
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.rows import LayerAux
from jaxformer.objectives import ObjectiveConfig
from jaxformer.run import Run

POSITION_BINS = 32
PyTree = Any


class PositionSums(NamedTuple):
    """Sums over rows, float32 [length]; `rows`, a scalar, counts rows with every answer right.
    `figures` are further sums that the objective evaluates. `layers` is what layers say of
    themselves per token, averaged over those that do."""

    loss: jax.Array
    correct: jax.Array
    tokens: jax.Array
    rows: jax.Array
    figures: dict[str, jax.Array]
    layers: dict[str, jax.Array]


@partial(jax.jit, static_argnums=(0, 1))
def position_sums(
    objective: ObjectiveConfig, model: LanguageModel, params: PyTree, batch: Batch
) -> PositionSums:
    """Nats and right answers at every position of [batch, length]."""
    scores, aux = objective.scores(model, params, batch)
    mask = batch.loss_mask.astype(jnp.float32)
    whole = jnp.all(scores.greedy, axis=1) & batch.loss_mask.any(axis=1)
    return PositionSums(
        -scores.log_probs.sum(0),
        (scores.greedy * mask).sum(0),
        mask.sum(0),
        whole.sum(dtype=jnp.float32),
        {},
        _per_token(aux, batch),
    )


@partial(jax.jit, static_argnums=(0, 1))
def loss_sums(
    objective: ObjectiveConfig, model: LanguageModel, params: PyTree, batch: Batch
) -> PositionSums:
    """What the objective evaluates, as if rows had one position."""
    sums, aux, figures = objective.evaluate(model, params, batch)
    nothing = jnp.zeros(())
    layers = _per_token(aux, batch)
    return PositionSums(sums.loss[None], nothing[None], sums.tokens[None], nothing, figures, layers)


def _per_token(aux: LayerAux, batch: Batch) -> dict[str, jax.Array]:
    read = jnp.maximum(jnp.sum(batch.segment_ids != 0), 1)
    return {name: value / read for name, value in aux.over_layers().items()}


def measure(run: Run, batches: Iterable[Batch], bytes_per_token: float) -> dict[str, Any]:
    """Over all batches: `loss` in nats per token, `accuracy` per token, `row_accuracy` (all of a
    row's answers right), `bits_per_byte`, `by_position` (the loss in up to 32 equal parts of the
    row, null where a part has no target), `layers` (what layers say of themselves, per token, by
    the name of the statistic), and `rows`, their number.

    The loss of a model that does not read from left to right is what its objective evaluates, with
    the figures of the objective beside it: `accuracy` and `top5_accuracy` of classes, or
    `label_error_rate`. Other accuracies and `by_position` are null.
    """
    objective = run.config.train.objective
    measured = position_sums if objective.is_causal else loss_sums
    totals: PositionSums | None = None
    said: list[dict[str, np.ndarray]] = []
    num_rows = 0
    for batch in batches:
        found = jax.device_get(measured(objective, run.model, run.params, batch))
        said.append(found.layers)
        sums = jax.tree.map(_wide, found._replace(layers={}))
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        num_rows += int(batch.loss_mask.any(axis=1).sum())
    assert totals is not None
    loss, correct, tokens, rows, figures, _ = totals
    parts = np.array_split(np.arange(len(loss)), min(POSITION_BINS, len(loss)))
    mean = float(loss.sum() / tokens.sum())
    result: dict[str, Any] = {
        "loss": mean,
        "bits_per_byte": mean / math.log(2) / bytes_per_token,
        "accuracy": None,
        "row_accuracy": None,
        "rows": num_rows,
        "by_position": None,
        "layers": {
            name: float(np.mean([each[name] for each in said]))
            for name in (said[0] if said else ())
        },
    }
    result |= {name: float(figure / tokens.sum()) for name, figure in figures.items()}
    if objective.is_causal:
        result["accuracy"] = float(correct.sum() / tokens.sum())
        result["row_accuracy"] = float(rows / num_rows)
        result["by_position"] = [
            float(loss[part].sum() / tokens[part].sum()) if tokens[part].any() else None
            for part in parts
        ]
    return result


def _wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)


def measure_on(run: Run, data: DataConfig) -> dict[str, Any]:
    """`measure` on the held-out rows of `data`, with the same number of tokens at every length.

    Raises:
        UserError: the rows cannot be made.
    """
    size = run.config.eval_rows
    rows = max(1, size * run.config.data.sequence_length // data.sequence_length)
    batches = validation_batches(Stores(data, run.tokenizer), batch_size=rows)
    count = min(len(batches), run.config.eval.batches or len(batches))
    chosen = (batches[index] for index in range(count))
    return {"length": data.sequence_length, **measure(run, chosen, batches.bytes_per_token)}
