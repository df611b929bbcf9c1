"""The rows that a configuration trains and validates on, from the stores of its sources."""

from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from jaxformer.config import DataConfig
from jaxformer.data.class_names import ClassNames, other_classes, unknown_class
from jaxformer.data.draws import mixed
from jaxformer.data.media.making import Recipe
from jaxformer.data.media.records import wanted_of
from jaxformer.data.media.store import Store, StoreManifest
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import UserError

S = TypeVar("S", bound=Store[Any])
R = TypeVar("R")


class Parts(Generic[S, R]):
    """The rows of every source; a store is opened, or made, once, when its rows are needed."""

    recipe: ClassVar[type[Recipe[Any]]]

    def __init__(self, tokenizer: Tokenizer, data: DataConfig) -> None:
        self.tokenizer = tokenizer
        if wanted_of(data).key == "label":
            classes_in(tokenizer, data)
        self._opened: dict[str, S] = {}

    def training_rows(self, store: S, chosen: np.ndarray, data: DataConfig) -> R:
        """The rows of a store to train on, among those `chosen`."""
        raise NotImplementedError

    def validation_rows(self, store: S, chosen: np.ndarray, data: DataConfig) -> R:
        """The rows of a store to validate on, among those `chosen`."""
        raise NotImplementedError

    def reading_threads(self, data: DataConfig) -> int:
        """How many batches to make at once."""
        raise NotImplementedError

    def training(self, data: DataConfig) -> tuple[R, ...]:
        """The rows to train on, a part per source.

        Raises:
            UserError: a source is wrong or empty, or its classes are not those of the run.
        """
        fraction = 0.0 if data.validation_source is not None else data.validation_fraction
        parts = []
        for entry in data.sources:
            store = self.open(entry.source, data)
            held = held_out(store.manifest.rows, fraction)
            parts.append(self.training_rows(store, np.flatnonzero(~held), data))
        return tuple(parts)

    def validation(self, data: DataConfig) -> tuple[R, ...]:
        """The rows of `validation_source`, or else those of every source that are held out.

        Raises:
            UserError: a source is wrong or empty, or has so few rows that none is held out.
        """
        if data.held_out is not None:
            store = self.open(data.held_out.source, data)
            return (self.validation_rows(store, np.arange(store.manifest.rows), data),)
        if not data.validation_fraction:
            return ()
        parts = []
        for entry in data.sources:
            store = self.open(entry.source, data)
            count, what = store.manifest.rows, f"{wanted_of(data).noun}s"
            held = held_out_of(entry.source, count, what, data.validation_fraction)
            parts.append(self.validation_rows(store, held, data))
        return tuple(parts)

    def open(self, name: str, data: DataConfig) -> S:
        """The store of one source, made first if there is none; opened once."""
        if name not in self._opened:
            self._opened[name] = self.recipe.of(name, data, self.tokenizer.vocab_size).open()
        return self._opened[name]


def held_out_of(source: str, rows: int, what: str, fraction: float) -> np.ndarray:
    """Which of a source's rows are held out, int64, ascending; `what` they are, in words.

    Raises:
        UserError: none is.
    """
    held = np.flatnonzero(held_out(rows, fraction))
    if not len(held):
        raise UserError(
            f"data source '{source}': of {rows:,} {what}, data.validation_fraction {fraction} "
            f"holds out none; raise it, set it to 0 for no validation, or give "
            f"data.validation_source"
        )
    return held


def held_out(rows: int, fraction: float) -> np.ndarray:
    """Which of so many rows are held out, bool [rows]: ⌊fraction · rows⌋ from all over the source,
    because folders and files are often sorted by class. They are the same for every seed, and most
    stay if rows are added at the end."""
    order = np.argsort(mixed(np.arange(rows)), kind="stable")
    held = np.zeros(rows, np.bool_)
    held[order[: int(fraction * rows)]] = True
    return held


def classes_in(tokenizer: Tokenizer, data: DataConfig) -> ClassNames:
    """The classes of a run, in place of a tokenizer.

    Raises:
        UserError: it is a tokenizer of text.
    """
    if isinstance(tokenizer, ClassNames):
        return tokenizer
    raise UserError(
        f"data.tokenizer '{tokenizer.name}' is one of text, but the rows of data.kind {data.kind} "
        f"have classes; give classes, classes:N or a classes.json file"
    )


def ids_of(manifest: StoreManifest, classes: ClassNames) -> np.ndarray | None:
    """The run's class of each class of a store, int32; None if they are the same.

    Lists of classes must be equal, since their order has a meaning to whoever made them; names of
    folders, and texts, are looked up.

    Raises:
        UserError: the store has other classes, or another order of them.
    """
    known = classes.names
    numbered = classes.name.startswith("classes:")
    if manifest.classes is None:
        return None  # numbers, which are below the number of classes
    if numbered:
        if manifest.label_kind == "listed" and len(manifest.classes) == len(known):
            return None
        raise UserError(
            f"data source '{manifest.source}' has {len(manifest.classes)} classes with names, such "
            f"as '{manifest.classes[0]}', and data.tokenizer is {classes.name}; give "
            f"data.tokenizer=classes"
        )
    if manifest.label_kind == "listed" and manifest.classes != known:
        raise other_classes(manifest.source, manifest.classes, known)
    if manifest.classes == known:
        return None
    ids = [classes.id_of(name) for name in manifest.classes]
    for name, number in zip(manifest.classes, ids, strict=True):
        if number is None:
            raise unknown_class(manifest.source, name, known)
    return np.asarray(ids, np.int32)
