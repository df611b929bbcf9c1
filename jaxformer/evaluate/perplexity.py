"""Loss, perplexity and bits per byte of a model on text."""

import json as json_format
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxformer.batch import Batch
from jaxformer.config import Config, DataConfig
from jaxformer.data.loader import ValidationBatches, validation_batches
from jaxformer.data.stores import Stores
from jaxformer.errors import UserError
from jaxformer.evaluate.tables import table_of_figures
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives import NextTokenConfig, ObjectiveConfig
from jaxformer.parallel import processes
from jaxformer.parallel.mesh import check_rows
from jaxformer.parallel.rules import batch_sharding, put_batch, rows_held, use_mesh, whole
from jaxformer.run import Run
from jaxformer.terminal import progress

PyTree = Any
EvalStep = Callable[[PyTree, Batch], "EvalSums"]
Sums = TypeVar("Sums")
NEXT_TOKEN = NextTokenConfig()
# How figures are told in a sentence, in this order.
SAID = {
    "bits_per_byte": "{:.4f} bits per byte",
    "perplexity": "perplexity {:.4g}",
    "accuracy": "accuracy {:.2%}",
    "top5_accuracy": "top-5 accuracy {:.2%}",
    "label_error_rate": "label error rate {:.2%}",
    "batch_accuracy": "accuracy within batches {:.2%}",
    "variance": "{:.4f} for a guess of the mean",
}


class Evaluation(NamedTuple):
    """Over all loss tokens, all rows that have a class, or all labels of recordings: `loss` in nats
    for each; or over all hidden places, with the mean of their squared errors.

    `figures` are those that fit what is predicted. Of text: `perplexity` = exp(loss), and
    `bits_per_byte` = loss / ln 2 / (text bytes per token). Of classes: `accuracy` and
    `top5_accuracy`. Of recordings: `label_error_rate`, edits per label. Of pairs: `batch_accuracy`.
    Of hidden places: `variance`, the loss of a guess of the mean. `layers` is what layers say of
    themselves per token read, such as `turns`, by name, averaged over the layers that do."""

    loss: float
    tokens: int
    tokens_per_second: float
    layers: dict[str, float]
    figures: dict[str, float]

    def told(self) -> str:
        """The figures in a sentence."""
        figures = self.figures
        return ", ".join(
            form.format(figures[name]) for name, form in SAID.items() if name in figures
        )

    def record(self) -> dict[str, Any]:
        """All of it, with the figures side by side."""
        fields = self._asdict()
        return {"loss": fields.pop("loss"), **fields.pop("figures"), **fields}


class EvalSums(NamedTuple):
    """Float32 sums over a batch, to be added up over batches."""

    loss: jax.Array
    tokens: jax.Array  # in the loss
    layers: dict[str, jax.Array]  # statistics over the tokens read
    read: jax.Array  # tokens that are not padding
    figures: dict[str, jax.Array]


def make_eval_step(model: LanguageModel, objective: ObjectiveConfig = NEXT_TOKEN) -> EvalStep:
    """`(params, batch) -> EvalSums`, to be jitted."""

    def eval_step(params: PyTree, batch: Batch) -> EvalSums:
        sums, layers, figures = objective.evaluate(model, params, batch)
        read = jnp.sum(batch.segment_ids != 0, dtype=jnp.float32)
        return EvalSums(sums.loss, sums.tokens, layers.over_layers(), read, figures)

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
    figures: dict[str, float] = {}
    for done, sums in enumerate(one_ahead(eval_step, params, batches, sharding), start=1):
        loss += float(sums.loss)
        tokens += int(sums.tokens)
        read += float(sums.read)
        layers = {name: layers.get(name, 0.0) + float(x) for name, x in sums.layers.items()}
        figures = {name: figures.get(name, 0.0) + float(x) for name, x in sums.figures.items()}
        after_batch(done)
    if tokens == 0:
        raise ValueError("there is nothing to evaluate: no batch has a loss token")
    loss /= tokens
    seconds = time.perf_counter() - began
    layers = {name: value / read for name, value in layers.items()}
    figures = {name: value / tokens for name, value in figures.items()}
    if not figures:
        figures["perplexity"] = math.exp(min(loss, 700.0))  # beyond, a float64 overflows
        figures["bits_per_byte"] = loss / math.log(2) / bytes_per_token
    return Evaluation(loss, tokens, tokens / seconds, layers, figures)


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


def tell(run: Run, path: Path, *, json: bool) -> None:
    """Evaluate a run on its validation text, and print. A bound is said to be one: the true loss,
    perplexity and bits are at most the figures given.

    Raises:
        UserError: see `validate`.
    """
    result = validate(run)
    if json:
        bound = {"is_bound": True} if run.config.train.objective.is_bound else {}
        record = {"run": str(path), "step": run.step, **result.record(), **bound}
        print(json_format.dumps(record))
    else:
        _print_table(f"{path}, step {run.step:,}", run.config, result)


def validate(run: Run, check: Callable[[], None] = lambda: None) -> Evaluation:
    """Evaluate a run on its validation text; `check` is called after every batch.

    Raises:
        UserError: it has no validation text, or the mesh does not divide the rows of a batch.
    """
    config, sharding = run.config, batch_sharding(run.mesh)
    batches, count = validation_of(run)
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


def validation_of(run: Run) -> tuple[ValidationBatches, int]:
    """A run's validation batches, and how many of them eval.batches asks for.

    Raises:
        UserError: there are none, or the mesh does not divide the rows of a batch.
    """
    config = run.config
    batch_size = config.eval_rows
    check_rows(run.mesh.shape, batch_size, 1, "eval.batch_size")
    with processes.first_goes_first("token stores"):
        held = rows_held(batch_sharding(run.mesh), batch_size)
        stores = Stores(config.data, run.tokenizer)
        batches = validation_batches(stores, batch_size=batch_size, held=held)
    count = min(len(batches), config.eval.batches or len(batches))
    if count == 0:
        raise UserError(
            "there is no validation text: data.validation_fraction is 0 and data.validation_source "
            "is not set; give one, such as data.validation_source='text:books/*.txt'"
        )
    return batches, count


def found_in_validation(
    run: Run, step: Callable[[PyTree, Batch], Sums], title: str, check: Callable[[], None]
) -> Iterator[Sums]:
    """What a jitted `step` finds in every validation batch of a run, whole on the host; `check` is
    called after every batch.

    Raises:
        UserError: see `validation_of`.
    """
    batches, count = validation_of(run)
    chosen = (batches[index] for index in range(count))
    with use_mesh(run.mesh, run.config.mesh.table), progress(title, count) as report:
        every = one_ahead(step, run.params, chosen, batch_sharding(run.mesh))
        for done, found in enumerate(every, start=1):
            yield jax.tree.map(whole, found)
            report(done)
            check()


def data_of(data: DataConfig) -> str:
    """What is evaluated on, in words."""
    if data.task is not None:
        return f"held-out rows of the task {data.task.kind}"
    if data.validation_source is not None:
        return data.validation_source
    sources = ", ".join(entry.source for entry in data.sources)
    last = "the last " if data.kind == "text" else ""  # of others, rows from all over
    return f"{last}{data.validation_fraction:.3g} of {sources}"


def _print_table(title: str, config: Config, result: Evaluation) -> None:
    from rich.console import Console

    bound = "at most " if config.train.objective.is_bound else ""
    figures = (
        ("text", data_of(config.data)),
        (f"loss ({config.train.objective.loss_unit})", f"{bound}{result.loss:.4f}"),
        *((name.replace("_", " "), f"{bound}{x:.4f}") for name, x in result.figures.items()),
        ("tokens", f"{result.tokens:,}"),
        *((f"{name} (per token)", f"{value:.4g}") for name, value in result.layers.items()),
        ("tokens per second", f"{result.tokens_per_second:,.0f}"),
    )
    Console().print(table_of_figures(title, figures))
