"""Pictures or recordings in a folder for every class: `imagefolder:FOLDER` and `audiofolder:FOLDER`
have FOLDER/CLASS/**/FILE."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from jaxformer.data.media.records import Labels, Record, Wanted
from jaxformer.errors import UserError, did_you_mean
from jaxformer.paths import local_path

T = TypeVar("T")

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")


class FolderSource:
    """The files under FOLDER in sorted order; hidden ones, and those of other kinds, are not read.

    Raises:
        UserError: there is no such folder, or no file in a folder of its class.
    """

    def __init__(self, name: str, where: str, wanted: Wanted) -> None:
        self.name, self.folder, self._wanted = name, folder_of(name, where), wanted
        self.identity = f"{name.partition(':')[0]}:{self.folder}"
        if not self._files:
            raise UserError(
                f"data source '{name}': no {wanted.noun}s in a folder for their class, as in "
                f"{self.folder}/CLASS/1{wanted.ends[0]}; allowed: {', '.join(wanted.ends)}"
            )
        if set(self._classes) <= set(SPLITS):
            raise UserError(
                f"data source '{name}' has the folders {', '.join(self._classes)}, which are no "
                f"classes; name one of them, as in {name.rstrip('/')}/{self._classes[0]}"
            )

    @cached_property
    def _files(self) -> list[Path]:
        found = []
        for top, folders, names in os.walk(self.folder, followlinks=True):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            if Path(top) != self.folder:
                found += [
                    Path(top, name)
                    for name in sorted(names)
                    if name.lower().endswith(self._wanted.ends) and not name.startswith(".")
                ]
        return found

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        return tuple(sorted({self._class_of(file) for file in self._files}))

    def _class_of(self, file: Path) -> str:
        return file.relative_to(self.folder).parts[0]

    @cached_property
    def size(self) -> int:
        return size_of(self._files)

    @property
    def labels(self) -> Labels:
        return Labels("names", self._classes)

    @property
    def traces(self) -> set[str]:
        return {self.identity}

    def fingerprint(self) -> str:
        return fingerprint_of(self.folder, self._files)

    def records(self, limit: int | None) -> Iterator[Record]:
        done = 0
        for file in self._files:
            content = tried(file, Path.read_bytes)
            done += len(content)
            yield Record(content, self._class_of(file), str(file), done)


def folder_of(name: str, where: str) -> Path:
    """The folder of the source `name`.

    Raises:
        UserError: there is none.
    """
    folder = local_path(where).absolute()
    if folder.is_dir():
        return folder
    siblings = os.listdir(folder.parent) if folder.parent.is_dir() else []
    what = "is a file" if folder.exists() else "there is no such folder"
    raise UserError(
        f"data source '{name}': {what}; allowed: a folder with a folder of files for every class, "
        f"or with texts, one that has metadata.jsonl or metadata.csv."
        f"{did_you_mean(folder.name, siblings)}"
    )


def size_of(files: Sequence[Path]) -> int:
    """The bytes of files together."""
    return sum(tried(file, Path.stat).st_size for file in files)


def fingerprint_of(folder: Path, files: Sequence[Path]) -> str:
    """Changes when a file of a folder may have changed."""
    states = [(file, tried(file, Path.stat)) for file in files]
    rows = [
        [os.path.relpath(file, folder), state.st_size, state.st_mtime_ns] for file, state in states
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def tried(file: Path, action: Callable[[Path], T]) -> T:
    """What the action gives.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return action(file)
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}; make it readable, or remove it"
        ) from None
