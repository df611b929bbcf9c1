"""Log-probabilities of many continuations: packed into rows as training packs documents."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxformer.batch import Batch
from jaxformer.errors import UserError
from jaxformer.evaluate.causal import check_causal
from jaxformer.evaluate.perplexity import one_ahead
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives import ObjectiveConfig
from jaxformer.ops.token_losses import TokenScores
from jaxformer.parallel.mesh import check_rows
from jaxformer.parallel.rules import Rules, batch_sharding, replicated, rows_held, use_mesh
from jaxformer.run import Run
from jaxformer.terminal import progress

PyTree = Any


class Continuation(NamedTuple):
    """Tokens whose probability is wanted, and the tokens before them, at least one."""

    context: Sequence[int]
    tokens: Sequence[int]


class Score(NamedTuple):
    """log_prob: Σ log p(token | all before), in nats. greedy: every token is the likeliest."""

    log_prob: float
    greedy: bool


class Place(NamedTuple):
    """Where a continuation's targets are: rows[row, begin:end]; its input begins at `start`."""

    row: int
    start: int
    begin: int
    end: int


def score(
    run: Run, continuations: Sequence[Continuation], check: Callable[[], None] = lambda: None
) -> list[Score]:
    """The score of each continuation, in order, packed into as few batches of one shape as they
    fit into.

    A context and continuation longer than `data.sequence_length` lose their first tokens. Batches
    have as many rows as in an evaluation and are sharded alike. The program is compiled once per
    model. `check` is called after every batch; what it raises ends the work.

    Raises:
        UserError: a continuation alone is longer than a row, the mesh does not divide the rows, or
            the model does not read from left to right.
    """
    check_causal(run.config, "scoring continuations")
    length = run.config.data.sequence_length
    size = rows_at_once(run)
    for continuation in continuations:
        if len(continuation.tokens) > length:
            raise UserError(
                f"a continuation of {len(continuation.tokens)} tokens is longer than "
                f"data.sequence_length, {length}; override it for this evaluation"
            )
    places, row_count = _pack(continuations, length)
    sharding = batch_sharding(run.mesh)
    held = rows_held(sharding, size)
    batches = _batches(continuations, places, row_count, size, length, held)
    objective = run.config.train.objective
    score_step = _score_step(objective, run.model, run.mesh, run.config.mesh.table)
    found = []
    with progress("scoring", -(-row_count // size)) as report:
        for done, scores in enumerate(one_ahead(score_step, run.params, batches, sharding), 1):
            found.append(jax.device_get(scores))
            report(done)
            check()
    return [_sum(found, size, place) for place in places]


def rows_at_once(run: Run) -> int:
    """How many rows an evaluation batch has.

    Raises:
        UserError: the mesh does not divide them.
    """
    rows = run.config.eval_rows
    check_rows(run.mesh.shape, rows, 1, "eval.batch_size")
    return rows


@cache
def _score_step(
    objective: ObjectiveConfig, model: LanguageModel, mesh: Mesh, rules: Rules
) -> Callable[[PyTree, Batch], TokenScores]:
    """`(params, batch) -> TokenScores` on every device; compiled at the first call of a shape."""

    def scores(params: PyTree, batch: Batch) -> TokenScores:
        return objective.scores(model, params, batch)[0]

    jitted = jax.jit(scores, out_shardings=replicated(mesh))

    def step(params: PyTree, batch: Batch) -> TokenScores:
        with use_mesh(mesh, rules):
            return jitted(params, batch)

    return step


def _pack(continuations: Sequence[Continuation], length: int) -> tuple[list[Place], int]:
    """Place each continuation in rows of `length`, the longest first, each in the fullest row that
    has room (best fit decreasing). Also returns the number of rows."""
    # Without the last token, which is only a target.
    sizes = [min(len(each.context) + len(each.tokens) - 1, length) for each in continuations]
    places: dict[int, Place] = {}
    with_room: list[tuple[int, int]] = []  # (tokens left, row), rising
    rows = 0
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        at = bisect_left(with_room, (sizes[index], 0))
        if at < len(with_room):
            left, row = with_room.pop(at)
        else:
            left, row, rows = length, rows, rows + 1
        start = length - left
        end = start + sizes[index]
        places[index] = Place(row, start, end - len(continuations[index].tokens), end)
        insort(with_room, (left - sizes[index], row))
    return [places[index] for index in range(len(sizes))], rows


def _batches(
    continuations: Sequence[Continuation],
    places: Sequence[Place],
    row_count: int,
    size: int,
    length: int,
    held: np.ndarray,
) -> Iterator[Batch]:
    """The rows `held` of each batch; every continuation with its context is a document."""
    members: list[list[int]] = [[] for _ in range(-(-row_count // size) * size)]
    for index, place in enumerate(places):
        members[place.row].append(index)
    for first in range(0, len(members), size):
        shape = (size, length)
        inputs, targets, positions, segment_ids = (np.zeros(shape, np.int32) for _ in range(4))
        loss_mask = np.zeros(shape, bool)
        for row in range(size):
            for number, index in enumerate(members[first + row], start=1):
                each, (_, start, begin, end) = continuations[index], places[index]
                tokens = [*each.context, *each.tokens][-(end - start + 1) :]
                inputs[row, start:end] = tokens[:-1]
                targets[row, start:end] = tokens[1:]
                positions[row, start:end] = np.arange(end - start)
                segment_ids[row, start:end] = number
                loss_mask[row, begin:end] = True
        batch = Batch(inputs, targets, positions, segment_ids, loss_mask)
        yield Batch(*(array[held] for array in batch))


def _sum(found: Sequence[TokenScores], size: int, place: Place) -> Score:
    scores, row = found[place.row // size], place.row % size
    log_probs = scores.log_probs[row, place.begin : place.end]
    greedy = scores.greedy[row, place.begin : place.end]
    return Score(float(np.sum(log_probs, dtype=np.float64)), bool(np.all(greedy)))
