"""The copies that a run keeps, so that it reads nothing outside of its directory but the data.

`RUN/tokenizer/` has the files of its tokenizer. `RUN/base/` has the weights that its adapters
adapt, and `RUN/teacher/` those of its teacher, each as a run with one step. Their files are hard
links where the file system has them, because the files of a checkpoint never change, and otherwise
copies. Each folder is complete or absent: on a disk it is built beside its place, and in a bucket
the file that identifies it is written last.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jaxformer.checkpoint import integrity
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.checkpoint.weights import Weights
from jaxformer.data.character_tokenizer import CharacterTokenizer
from jaxformer.data.class_names import ClassNames
from jaxformer.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.errors import UserError
from jaxformer.paths import is_remote, locate_path, remove_tree, same_place
from jaxformer.run_files import (
    BASE,
    CHARACTERS,
    CHECKPOINTS,
    CLASSES,
    DEFINITION,
    needs_no_files,
    own_tokenizer,
)
from jaxformer.terminal import progress

# The last two are a model's: they may name the end of text where a tokenizer's own files do not.
TOKENIZER_FILES = (
    DEFINITION,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)
COMMITTED = "commit_success.txt"  # Orbax's mark of a complete step in a bucket
PIECE = 1 << 24  # bytes that are copied at once
BESIDE = ("building", "replaced")

Json = integrity.Json


def keep_copies(
    directory: RunDirectory, tokenizer: Tokenizer, base: Weights | None, teacher: Weights | None
) -> None:
    """Keep what a run needs: its tokenizer, the weights under its adapters, and its teacher's.

    Raises:
        UserError: one of them has changed or disappeared since it was read, or the disk is full.
    """
    keep_tokenizer(directory, tokenizer)
    if base is not None:
        keep_weights(directory.base, base, "under the adapters")
    if teacher is not None:
        keep_weights(directory.teacher, teacher, "as the teacher")


def keep_tokenizer(directory: RunDirectory, tokenizer: Tokenizer) -> None:
    """Copy the tokenizer's files, the names of the classes, or the characters, into the run, unless
    it has them.

    Raises:
        UserError: the files have changed since they were read.
    """
    folder = directory.tokenizer
    if isinstance(tokenizer, ClassNames):
        _keep_json(folder / CLASSES, tokenizer)
    if isinstance(tokenizer, CharacterTokenizer):
        _keep_json(folder / CHARACTERS, tokenizer)
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return

    def is_kept() -> bool:
        kept = load_tokenizer(str(folder), tokenizer.add_bos)
        return kept.fingerprint == tokenizer.fingerprint

    if (folder / DEFINITION).is_file() and is_kept():
        return
    with _whole(folder) as building:
        for name, file in reversed(_files_of(tokenizer).items()):
            (building / name).write_bytes(file.read_bytes())
    if not is_kept():
        remove_tree(folder)
        raise UserError(
            f"data.tokenizer '{tokenizer.name}' changed while the run started; start it again"
        )


def _keep_json(file: Path, tokenizer: ClassNames | CharacterTokenizer) -> None:
    if needs_no_files(tokenizer.name) or (
        file.is_file()
        and type(tokenizer).from_file(str(file), file).fingerprint == tokenizer.fingerprint
    ):
        return
    with _whole(file.parent) as building:
        (building / file.name).write_text(tokenizer.as_json() + "\n", encoding="utf-8")


def _files_of(tokenizer: HuggingFaceTokenizer) -> dict[str, Path]:
    given = locate_path(tokenizer.name)
    found = {name: tokenizer.find(name) for name in TOKENIZER_FILES}
    if given.is_file():  # of any name
        found[DEFINITION] = given
    return {name: file for name, file in found.items() if file is not None}


class Array(NamedTuple):
    """One file of an array to keep, and its place in the copy."""

    source: Path
    place: str
    bytes: int


def keep_weights(folder: Path, weights: Weights, role: str) -> None:
    """Keep what a run needs of another run's weights, unless they are that copy already.

    Args:
        role: what they are for, as messages say it.

    Raises:
        UserError: the disk has no room for copies, or a file disappeared meanwhile.
    """
    if same_place(weights.directory.path, folder):
        return
    # The base of adapters may be a run of adapters itself, with a base of its own.
    layers = [("", weights)]
    while (last := layers[-1][1]).config.lora is not None:
        layers.append((f"{layers[-1][0]}{BASE}/", last.base))
    arrays = [array for prefix, layer in layers for array in _arrays(layer, prefix)]
    try:
        with _whole(folder) as building:
            _put(arrays, building, f"keeping {weights.where} {role}")
            for prefix, layer in reversed(layers):
                _describe(layer, building / prefix)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} disappeared while it was kept {role} of {folder.parent}: its own "
            f"run has moved on; start again, from that run's newest checkpoint"
        ) from error


def _arrays(weights: Weights, prefix: str) -> list[Array]:
    step = f"{prefix}{CHECKPOINTS}/{weights.step}"
    return [
        Array(weights.where / name, f"{step}/{name}", record["bytes"])
        for name, record in _files(weights).items()
    ]


def _files(weights: Weights) -> Json:
    """The manifest's records of the arrays that are read; the optimizer's are left out."""
    files = weights.manifest["files"]
    return {name: files[name] for name in files if name.startswith(f"{weights.item}/")}


def _put(arrays: Sequence[Array], folder: Path, title: str) -> None:
    total, done, links = sum(array.bytes for array in arrays), 0, True
    with progress(title, total) as report:
        for source, place, size in arrays:
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if links and not (links := _link(source, target)):
                _check_room(folder, total - done)
            if links:
                done += size
            else:
                for count in _copy(source, target):
                    done += count
                    report(done)


def _link(source: Path, target: Path) -> bool:
    """Hard-link the file; False where that is impossible, as across disks or owners."""
    if is_remote(source) or is_remote(target):
        return False
    try:
        os.link(source.resolve(strict=True), target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def _copy(source: Path, target: Path) -> Iterator[int]:
    """Copy the file, and yield the number of bytes of each piece."""
    with source.open("rb") as old, target.open("wb") as new:
        while piece := old.read(PIECE):
            yield new.write(piece)
        if not is_remote(target):
            new.flush()
            os.fsync(new.fileno())


def _check_room(folder: Path, needed: int) -> None:
    free = needed if is_remote(folder) else shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder.parent} is on a disk with {free:,} bytes free, but the weights that the run "
            f"keeps take {needed:,}; make room, or give run.dir on another disk (on the disk of "
            f"the weights, nothing is copied)"
        )


def _describe(weights: Weights, folder: Path) -> None:
    """Write what makes the arrays in `folder` a run, its config.yaml last."""
    step = folder / CHECKPOINTS / str(weights.step)
    trees = {weights.item: weights.manifest["trees"][weights.item]}
    known = {name: record["sha256"] for name, record in _files(weights).items()}
    integrity.seal(step, {**weights.manifest, "trees": trees}, known)
    if is_remote(step):
        (step / COMMITTED).write_text("")
    origin, copy = weights.directory, RunDirectory(folder)
    tokenizer = own_tokenizer(origin.path, weights.config.data.tokenizer)
    if tokenizer is not None:
        copy.tokenizer.mkdir()
        there = tokenizer if tokenizer.is_dir() else tokenizer.parent
        for name in (*TOKENIZER_FILES, CLASSES, CHARACTERS):
            if (there / name).is_file():
                (copy.tokenizer / name).write_bytes((there / name).read_bytes())
    if origin.manifest.exists():
        copy.manifest.write_bytes(origin.manifest.read_bytes())
    copy.create(origin.recorded(weights.config))


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Where to build `folder`. On a disk it gets its name only if the block succeeds; in a bucket
    the block itself writes the file that identifies it last."""
    if is_remote(folder):
        remove_tree(folder)
        yield folder
        return
    building, replaced = (folder.with_name(f".{folder.name}.{what}") for what in BESIDE)
    for left in (building, replaced):
        remove_tree(left)
    building.mkdir(parents=True)
    try:
        yield building
        if folder.exists():
            folder.rename(replaced)
        building.rename(folder)
    finally:
        for left in (building, replaced):
            remove_tree(left)
