"""How well a run finds the picture of a text, and the text of a picture, among all validation
rows."""

import json as json_format
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.batch import Batch
from jaxformer.data.images.captions import rows_of
from jaxformer.evaluate.perplexity import data_of, found_in_validation
from jaxformer.model.language_model import LanguageModel
from jaxformer.parallel.mesh import data_shards
from jaxformer.parallel.rules import put_rows, use_mesh, whole
from jaxformer.run import Run

PyTree = Any
AMONG = (1, 5, 10)  # how many of the nearest are looked at
AT_ONCE = 1024  # rows that are compared with all others
ROUNDING = 1e-6  # of products of vectors: equal texts have vectors that differ by less


class Vectors(NamedTuple):
    """What a model makes of the pairs of a batch, a vector for either side of each."""

    texts: jax.Array  # [rows, width]
    pictures: jax.Array  # [rows, width]
    there: jax.Array  # [rows], False for rows that only fill up the batch


class Report(NamedTuple):
    """Over all pairs, by the numbers of `AMONG`: the share of texts (of pictures) of which so many
    of the nearest pictures (texts) have their own among them. Of equally near ones, their own comes
    first."""

    pairs: int
    text_to_picture: dict[int, float]
    picture_to_text: dict[int, float]

    def figures(self) -> dict[str, float]:
        """The shares by names, as `text_to_picture_recall_at_1`."""
        ways = {"text_to_picture": self.text_to_picture, "picture_to_text": self.picture_to_text}
        return {
            f"{way}_recall_at_{number}": share
            for way, shares in ways.items()
            for number, share in shares.items()
        }


def vectors(model: LanguageModel, params: PyTree, batch: Batch) -> Vectors:
    """A pure function of a batch, to be jitted."""
    rows = (batch.inputs, batch.positions, batch.segment_ids)
    sides, _, _ = model.apply({"params": params}, *rows, method="compare")
    return Vectors(sides.x, sides.y, jnp.asarray(batch.loss_mask)[:, 0])


def report_on(run: Run, check: Callable[[], None] = lambda: None) -> Report:
    """Compare a run's validation rows; `check` is called after every batch.

    Raises:
        UserError: it has none, or the mesh does not divide the rows of a batch.
    """
    step = jax.jit(partial(vectors, run.model))
    found = found_in_validation(run, step, "comparing", check)
    every = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    texts, pictures = every.texts[every.there], every.pictures[every.there]
    return Report(len(texts), recalls(texts, pictures), recalls(pictures, texts))


def recalls(x: np.ndarray, y: np.ndarray) -> dict[int, float]:
    """The share of x [rows, width] of which the y of the same row is among so many nearest ones."""
    ranks = []
    for start in range(0, len(x), AT_ONCE):
        products = x[start : start + AT_ONCE] @ y.T
        places = np.arange(len(products))
        own = products[places, start + places]
        ranks.append(np.sum(products > own[:, None] + ROUNDING, axis=1))
    rank = np.concatenate(ranks)
    return {number: float(np.mean(rank < number)) for number in AMONG}


def vectors_of_texts(run: Run, texts: Sequence[str]) -> np.ndarray:
    """[texts, width]; texts are cut as in training.

    Raises:
        UserError: data.images.fill is no id.
    """
    tokens, positions, segment_ids = rows_of(texts, run.config.data, run.tokenizer)
    missing = -len(texts) % data_shards(run.mesh.shape)

    def put(array: np.ndarray) -> jax.Array:
        return put_rows(np.pad(array, [(0, missing), (0, 0)], mode="edge"), run.mesh)

    def of_rows(params: PyTree, *rows: jax.Array) -> jax.Array:
        found: jax.Array = run.model.apply({"params": params}, *rows, method="vectors")
        return found

    with use_mesh(run.mesh, run.config.mesh.table):
        rows = map(put, (tokens, positions, segment_ids))
        return whole(jax.jit(of_rows)(run.params, *rows))[: len(texts)]


def tell(run: Run, path: Path, *, json: bool) -> None:
    """Compare a run's validation rows, and print the report.

    Raises:
        UserError: see `report_on`.
    """
    report = report_on(run)
    if json:
        record = {"run": str(path), "step": run.step, "pairs": report.pairs, **report.figures()}
        print(json_format.dumps(record))
    else:
        _print_table(f"{path}, step {run.step:,}", data_of(run.config.data), report)


def _print_table(title: str, data: str, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("the picture of a text", "the text of a picture"):
        table.add_column(name, justify="right")
    for number in AMONG:
        shares = (report.text_to_picture[number], report.picture_to_text[number])
        table.add_row(f"among the {number} nearest", *(f"{share:.2%}" for share in shares))
    console = Console()
    console.print(table)
    console.print(f"{report.pairs:,} pairs: {data}")
