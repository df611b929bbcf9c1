"""What `jaxformer data prepare`, `inspect` and `train-tokenizer` do."""

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxformer.config import Config, DataConfig
from jaxformer.data.documents import (
    Lengths,
    PairFormat,
    TextFormat,
    read_documents,
    sides_of,
    words_of,
)
from jaxformer.data.manifest import INDEX, UnusableStoreError
from jaxformer.data.media_commands import inspect_media, prepare_media
from jaxformer.data.merging import announce, finished, merge
from jaxformer.data.overlap import warn_of_overlap
from jaxformer.data.packing import PackedRows
from jaxformer.data.pairs import PairRows
from jaxformer.data.plans import SHARD_BYTES, Plan, plan_of, source_named
from jaxformer.data.prepare import write_units
from jaxformer.data.recipe import store_of_source, stores_folder
from jaxformer.data.shards import END
from jaxformer.data.stores import Part, Stores
from jaxformer.data.text_of_ids import added_text
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.data.unit_writer import EMPTY
from jaxformer.errors import UserError
from jaxformer.paths import nearest_existing
from jaxformer.schema.base import Schema
from jaxformer.terminal import progress, say

if TYPE_CHECKING:
    from rich.table import Table

Packed = PackedRows | PairRows  # rows of a token store
LEFT_OUT = {
    "not_utf8": "not UTF-8",
    "missing": "null or missing",
    "bad": "not a row of text",
    "short": "too short",
    "long": "too long",
    "duplicate": "duplicates",
}
END_OF_TEXT = "<|endoftext|>"
BYTE_VALUES = 256
PURPOSES = {"training": "to train on", "validation": "to validate on"}
SAMPLE_LINES = 8
SAMPLE_WIDTH = 96
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def prepare(config: Config, shard_bytes: int = SHARD_BYTES) -> None:
    """Makes every store that the configuration needs, and says what is there."""
    if config.data.is_media:
        prepare_media(config.data)
        return
    if _needs_no_text(config.data):
        return
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.add_bos)
    made = _by_purpose(Stores(config.data, tokenizer, shard_bytes))
    warn_of_overlap(config.data, tokenizer)
    for purpose, parts in made.items():
        for part in parts:
            words = f"{part.words} {PURPOSES[purpose]}"
            say(f"{part.store.manifest.source}: {words} ({part.store.place})")


def prepare_part(
    config: Config, part: int, parts: int, shard_bytes: int, cores: int | None = None
) -> None:
    """Makes the units `part`, `part + parts`, ... of all stores of the configuration, counted
    through, on so many cores (default: all); other parts may be made at the same time, here or
    elsewhere.

    Raises:
        UserError: a source is wrong, or the place cannot be written.
    """
    before = 0
    for plan in _plans(config, shard_bytes):
        if finished(plan) is not None:
            before += len(plan.units)
            say(f"the token store of {plan.source.source} is whole already ({plan.recipe.place})")
            continue
        numbers = [unit for unit in range(len(plan.units)) if (before + unit) % parts == part]
        before += len(plan.units)
        write_units(plan, numbers, cores)
        say(
            f"part {part} of {parts} is done: {len(numbers)} of the {len(plan.units)} units of "
            f"{plan.source.source} ({plan.recipe.place})"
        )


def merge_parts(config: Config, shard_bytes: int) -> None:
    """Checks that the parts have made all units, and writes the index of every store.

    Raises:
        UserError: units are missing.
    """
    plans = _plans(config, shard_bytes)
    beside = [plan.recipe.key for plan in plans]
    for plan in plans:
        announce(merge(plan, beside), plan.recipe.place)
    say(f"to train on them, on any machine: data.store_dir={stores_folder(config.data)}")
    for plan in plans:
        say(
            f"or, without the files of {plan.source.source}: data.source=store:{plan.recipe.place} "
            f"data.tokenizer={config.data.tokenizer}"
        )


def _needs_no_text(data: DataConfig) -> bool:
    """Whether there is nothing to prepare, which is said."""
    if data.task is None or data.task.needs_text:
        return False
    say(f"task {data.task.kind}: its rows are made while training; nothing to prepare")
    return True


def _plans(config: Config, shard_bytes: int) -> list[Plan]:
    """A plan for each source that is not a store already."""
    data = config.data
    _check_text(data, "data prepare in parts is")
    if _needs_no_text(data):
        return []
    tokenizer = load_tokenizer(data.tokenizer, data.add_bos)
    sources = [*data.all_sources, *([data.held_out] if data.held_out else [])]
    plans = {
        plan.recipe.key: plan
        for plan in (
            plan_of(source, data, tokenizer, shard_bytes)
            for source in sources
            if store_of_source(source.source) is None
        )
    }
    return list(plans.values())


def _check_text(data: DataConfig, what: str) -> None:
    if data.is_media:
        raise UserError(
            f"{what} for text, and data.kind is {data.kind}; jaxformer data prepare CONFIG, "
            f"without parts, makes stores of all kinds"
        )


def inspect(config: Config) -> None:
    """Prints a table of each store, and the beginning of a packed row, or an example where it
    holds instructions.

    Raises:
        UserError: a store's files do not have the hashes of its manifest.
    """
    from rich.console import Console

    if config.data.is_media:
        inspect_media(config.data)
        return
    console = Console()
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.add_bos)
    stores = Stores(config.data, tokenizer)
    if config.data.task is not None:
        console.print(_task_row(stores.training[0], tokenizer), markup=False, highlight=False)
        return
    for part in _one_of_each_store(stores):
        try:
            part.store.verify()
        except UnusableStoreError as reason:
            raise UserError(
                f"token store {part.store.place}: {reason}. Remove {INDEX} there; the next command "
                f"makes what is damaged again"
            ) from None
        console.print(_table(part, stores))
        sample = _sample if not part.store.has_loss_mask else _example
        console.print(sample(part, tokenizer), markup=False, highlight=False, soft_wrap=True)


def train_tokenizer(data: DataConfig, out: Path, vocab_size: int) -> None:
    """Trains byte-level BPE with an <|endoftext|> token on all sources that `data` trains on.

    `out` is a tokenizer.json file, or a folder to hold one. Text that a run will validate on is not
    left out: merges reveal next to nothing of it.

    Raises:
        UserError: `out` exists, `vocab_size` is below 257, or a source is wrong or empty.
    """
    from tokenizers import Tokenizer as Definition
    from tokenizers import decoders, models, pre_tokenizers, trainers

    _check_text(data, "data train-tokenizer is")
    file = out if out.suffix == ".json" else out / "tokenizer.json"
    if file.exists():
        raise UserError(f"'{file}' exists; choose another place, runs may use this one")
    if vocab_size <= BYTE_VALUES:
        raise UserError(
            f"vocab_size {vocab_size} is too small; allowed: at least {BYTE_VALUES + 1}, every "
            f"byte and {END_OF_TEXT}"
        )
    if vocab_size > Schema.largest_integer:
        raise UserError(
            f"vocab_size {vocab_size} is too large; allowed: at most {Schema.largest_integer:,}"
        )
    if not (there := nearest_existing(file)).is_dir():
        raise UserError(f"'{file}' cannot be written: {there} is a file; choose another place")
    definition = Definition(models.BPE())
    definition.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    definition.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    definition.train_from_iterator(_texts(data), trainer)
    if definition.get_vocab_size() < vocab_size:
        say(
            f"the text gave {definition.get_vocab_size()} ids, fewer than vocab_size {vocab_size}: "
            f"no more pairs to merge"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    definition.save(str(partial))
    partial.rename(file)
    say(f"tokenizer of {definition.get_vocab_size()} ids: data.tokenizer={out}")


def _texts(data: DataConfig) -> Iterator[str]:
    read = 0
    for entry in data.all_sources:
        form: TextFormat | PairFormat
        if data.pairs is not None:
            form = PairFormat(data.pairs.source, data.pairs.target)
        elif isinstance(entry.column, str) and entry.format == "text":
            form = TextFormat(entry.column)
        else:
            raise UserError(
                f"data source '{entry.source}': its format is {entry.format}, and a tokenizer is "
                f"trained on text; give data.format=text and a column of text as data.column"
            )
        source, lengths = source_named(entry.source, data), Lengths(data.min_chars, data.max_chars)
        with progress(f"reading {source.name} to train a tokenizer", source.size) as report:
            for document in read_documents(source, form, lengths):
                report(document.done)
                if document.text:
                    read += 1
                    yield from sides_of(document) if document.answers else [str(document.text)]
    if not read:
        names = ", ".join(entry.source for entry in data.all_sources)
        raise UserError(f"data source '{names}' holds no text to train a tokenizer on")
    say("merging pairs ...")


def _packed(parts: Sequence[Part]) -> list[Packed]:
    return [part for part in parts if isinstance(part, Packed)]


def _by_purpose(stores: Stores) -> dict[str, list[Packed]]:
    """The rows to train on in any stage, each once, and those to validate on."""
    stages = [stores.for_stage(data) for data in stores.data.of_stages]
    training = _packed([part for stage in stages for part in stage.training])
    once = {(part.store.place, part.words): part for part in training}
    return {"training": [*once.values()], "validation": _packed(stores.validation)}


def _one_of_each_store(stores: Stores) -> list[Packed]:
    training, validation = _by_purpose(stores).values()
    return list({part.store.place: part for part in (*validation, *training)}.values())


def _task_row(rows: Part, tokenizer: Tokenizer) -> str:
    """The first row of a task, and its answers as place:token."""
    row = rows.pack(np.asarray([0]))
    places = np.flatnonzero(row.loss_mask[0])
    answers = " ".join(f"{place}:{row.targets[0, place]}" for place in places)
    return f"row 0: {tokenizer.decode(row.inputs[0])}\nanswers: {answers}"


def _table(part: Packed, stores: Stores) -> "Table":
    from rich.table import Table

    store, manifest = part.store, part.store.manifest
    lengths = np.diff(store.document_tables()[:, END], prepend=0)
    quantiles = np.quantile(lengths, QUANTILES).round().astype(int)
    table = Table(title=manifest.source, show_header=False, title_justify="left")
    learnt = manifest.learnt_tokens
    called = words_of(manifest.instructions)
    rows = {
        called.all: f"{manifest.documents:,}",
        "left out": ", ".join(
            f"{count:,} {called.empty if reason == EMPTY else LEFT_OUT.get(reason, reason)}"
            for reason, count in manifest.left_out.items()
        )
        or "nothing",
        "tokens": f"{manifest.tokens:,} ({manifest.dtype}, {manifest.tokenizer})",
        **(
            {}
            if learnt is None
            else {"in the loss": f"{learnt:,} ({learnt / manifest.tokens:.1%})"}
        ),
        f"bytes of {called.learnt}": f"{manifest.text_bytes:,}",
        "bytes per token": f"{manifest.text_bytes / (learnt or manifest.tokens):.3f}",
        f"tokens per {called.all.removesuffix('s')}": " ".join(f"{value:,}" for value in quantiles)
        + " (quantiles "
        + " ".join(f"{q:g}" for q in QUANTILES)
        + ")",
        "shards": f"{len(manifest.shards):,}",
        "sha256": manifest.sha256,
        "folder": str(store.place),
    }
    for purpose, parts in _by_purpose(stores).items():
        here = [other.words for other in parts if other.store.place == store.place]
        if here:
            rows[purpose] = "; ".join(here)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _sample(part: Packed, tokenizer: Tokenizer) -> str:
    """The first lines of the first row, and how many of its targets are in the loss."""
    row = part.pack(np.asarray([0]))
    text = tokenizer.decode(row.inputs[0])
    lines = [line[:SAMPLE_WIDTH] for line in text.splitlines() if line.strip()][:SAMPLE_LINES]
    documents, loss_tokens = int(row.segment_ids.max()), int(row.loss_mask.sum())
    head = f"row 0: {documents} document(s), {loss_tokens} of {part.length} targets in the loss"
    return "\n".join([head, *(f"  | {line}" for line in lines), ""])


def _example(part: Packed, tokenizer: Tokenizer) -> str:
    """The first document as the model reads it, with the tokens in the loss between ⟦ and ⟧."""
    store = part.store
    _, end = store.document_at(0)
    ids, _, learnt = store.read(0, end)
    assert learnt is not None
    ends = [*(np.flatnonzero(np.diff(learnt)) + 1), end]
    texts = pairwise(["", *(tokenizer.decode_whole(ids[:cut]) for cut in ends)])
    pieces = [
        f"⟦{added_text(*texts_of)}⟧" if learnt[cut - 1] else added_text(*texts_of)
        for texts_of, cut in zip(texts, ends, strict=True)
    ]
    head = (
        f"document 0: {np.count_nonzero(learnt)} of {end} tokens are in the loss, between ⟦ and ⟧"
    )
    return "\n".join([head, *(f"  | {line}" for line in "".join(pieces).splitlines()), ""])
