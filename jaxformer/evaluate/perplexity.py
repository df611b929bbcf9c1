"""Loss, perplexity and bits per byte of a model on text."""

import json as json_format
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxformer.batch import Batch
from jaxformer.config import Config, DataConfig
from jaxformer.data.loader import validation_batches
from jaxformer.data.stores import Stores
from jaxformer.errors import UserError
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives import NextTokenConfig, ObjectiveConfig
from jaxformer.parallel import processes
from jaxformer.parallel.mesh import check_rows
from jaxformer.parallel.rules import batch_sharding, put_batch, rows_held, use_mesh
from jaxformer.run import Run, load
from jaxformer.terminal import progress

PyTree = Any
EvalStep = Callable[[PyTree, Batch], "EvalSums"]
Sums = TypeVar("Sums")
NEXT_TOKEN = NextTokenConfig()


class Evaluation(NamedTuple):
    """Over all loss tokens of the text: `loss` in nats per token, `perplexity` = exp(loss),
    `bits_per_byte` = loss / ln 2 / (text bytes per token). `layers` is what layers say of
    themselves per token read, such as `turns`, by name, averaged over the layers that do."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    tokens_per_second: float
    layers: dict[str, float]


class EvalSums(NamedTuple):
    """Float32 sums over a batch, to be added up over batches."""

    loss: jax.Array
    tokens: jax.Array  # in the loss
    layers: dict[str, jax.Array]  # statistics over the tokens read
    read: jax.Array  # tokens that are not padding


def make_eval_step(model: LanguageModel, objective: ObjectiveConfig = NEXT_TOKEN) -> EvalStep:
    """`(params, batch) -> EvalSums`, to be jitted."""

    def eval_step(params: PyTree, batch: Batch) -> EvalSums:
        sums, layers = objective.evaluate(model, params, batch)
        read = jnp.sum(batch.segment_ids != 0, dtype=jnp.float32)
        return EvalSums(sums.loss, sums.tokens, layers.over_layers(), read)

    return eval_step


def evaluate(
    eval_step: EvalStep,
    params: PyTree,
    batches: Iterable[Batch],
    *,
    bytes_per_token: float,
    sharding: NamedSharding,
    after_batch: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Σ loss / Σ tokens over all batches, which must have one shape.

    A batch's sums are float32 on the device and are added in float64 on the host, so the result
    depends neither on the batch size nor on padding, which has no loss tokens. The device computes
    one batch while the host makes the next.

    Args:
        after_batch: called with the number of batches done; what it raises ends the evaluation.

    Raises:
        ValueError: there is no loss token at all.
    """
    began = time.perf_counter()
    loss, tokens, read = 0.0, 0, 0.0
    layers: dict[str, float] = {}
    for done, sums in enumerate(one_ahead(eval_step, params, batches, sharding), start=1):
        loss += float(sums.loss)
        tokens += int(sums.tokens)
        read += float(sums.read)
        layers = {name: layers.get(name, 0.0) + float(x) for name, x in sums.layers.items()}
        after_batch(done)
    if tokens == 0:
        raise ValueError("there is nothing to evaluate: no batch has a loss token")
    loss /= tokens
    seconds = time.perf_counter() - began
    perplexity = math.exp(min(loss, 700.0))  # beyond, a float64 overflows
    bits_per_byte = loss / math.log(2) / bytes_per_token
    layers = {name: value / read for name, value in layers.items()}
    return Evaluation(loss, perplexity, bits_per_byte, tokens, tokens / seconds, layers)


def one_ahead(
    step: Callable[[PyTree, Batch], Sums],
    params: PyTree,
    batches: Iterable[Batch],
    sharding: NamedSharding,
) -> Iterator[Sums]:
    """`step` of each batch, yielded after the next batch is launched on the device."""
    running: Sums | None = None
    for batch in batches:
        launched = step(params, put_batch(batch, sharding))
        if running is not None:
            yield running
        running = launched
    if running is not None:
        yield running


def evaluate_run(path: Path, overrides: Sequence[str], *, json: bool) -> int:
    """Evaluate a run's newest checkpoint, or the one named, on its validation text, and print.

    Overrides go on top of the run's configuration: `data.validation_source` gives another text,
    `eval.batch_size` another batch size, `eval.batches` a part of the text instead of all of it.

    A bound is said to be one: the true loss, perplexity and bits are at most the figures given.

    Returns:
        The exit code, 0.

    Raises:
        UserError: no such run, nothing to validate on, or overrides that do not fit it.
    """
    run = load(path, ["eval.batches=null", *overrides])
    result = validate(run)
    if json:
        bound = {"is_bound": True} if run.config.train.objective.is_bound else {}
        record = {"run": str(path), "step": run.step, **result._asdict(), **bound}
        print(json_format.dumps(record))
    else:
        _print_table(f"{path}, step {run.step:,}", run.config, result)
    return 0


def validate(run: Run, check: Callable[[], None] = lambda: None) -> Evaluation:
    """Evaluate a run on its validation text; `check` is called after every batch.

    Raises:
        UserError: it has no validation text, or the mesh does not divide the rows of a batch.
    """
    config, sharding = run.config, batch_sharding(run.mesh)
    batch_size = config.eval.batch_size or config.train.batch_size
    check_rows(run.mesh.shape, batch_size, 1, "eval.batch_size")
    with processes.first_goes_first("token stores"):
        held = rows_held(sharding, batch_size)
        stores = Stores(config.data, run.tokenizer)
        batches = validation_batches(stores, batch_size=batch_size, held=held)
    count = min(len(batches), config.eval.batches or len(batches))
    if count == 0:
        raise UserError(
            "there is no validation text: data.validation_fraction is 0 and data.validation_source "
            "is not set; give one, such as data.validation_source='text:books/*.txt'"
        )
    with use_mesh(run.mesh, config.mesh.table):
        first = put_batch(batches[0], sharding)
        step = make_eval_step(run.model, config.train.objective)
        eval_step = jax.jit(step).lower(run.params, first).compile()
    with progress("evaluating", count) as report:

        def after_batch(done: int) -> None:
            report(done)
            check()

        return evaluate(
            eval_step,
            run.params,
            (batches[index] for index in range(count)),
            bytes_per_token=batches.bytes_per_token,
            sharding=sharding,
            after_batch=after_batch,
        )


def _text_of(data: DataConfig) -> str:
    """What is evaluated on, in words."""
    if data.task is not None:
        return f"held-out rows of the task {data.task.kind}"
    if data.validation_source is not None:
        return data.validation_source
    sources = ", ".join(entry.source for entry in data.sources)
    return f"the last {data.validation_fraction:.3g} of {sources}"


def _print_table(title: str, config: Config, result: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    bound = "at most " if config.train.objective.is_bound else ""
    for name, value in (
        ("text", _text_of(config.data)),
        ("loss (nats per token)", f"{bound}{result.loss:.4f}"),
        ("perplexity", f"{bound}{result.perplexity:.4g}"),
        ("bits per byte", f"{bound}{result.bits_per_byte:.4f}"),
        ("tokens", f"{result.tokens:,}"),
        *((f"{name} (per token)", f"{value:.4g}") for name, value in result.layers.items()),
        ("tokens per second", f"{result.tokens_per_second:,.0f}"),
    ):
        table.add_row(name, value)
    Console().print(table)
