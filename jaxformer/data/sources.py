"""Where text comes from: the grammar of `data.source`.

- `builtin:python`: the Python standard library's source, on every machine.
- `text:GLOB`: one document per file, in sorted order.
- `jsonl:GLOB`: one document per line, from `data.column`; or per item, if a file is one array.
- `parquet:GLOB`: one document per row, from `data.column`.
- `hf:FOLDER`: a dataset or dataset dictionary saved by `datasets.save_to_disk`.
- `hf:NAME`, `hf:ORG/NAME` or `hf:ORG/NAME/CONFIG`: a dataset of the Hugging Face Hub. One slash
  always separates organisation and name, so an old dataset without organisation that needs a
  configuration is written with the organisation it has now (`Salesforce/wikitext/...`).
  `:SPLIT` may follow either hf form (`hf:FOLDER:validation`, `hf:ORG/NAME:train[:10%]`); the split
  is `train` if not given. Only the Hub's datasets can be cut to part of a split.

Files are relative to the working directory, `~` is the home directory, `**` crosses folders, and
`{a,b}` is a or b. Text and jsonl files compressed with gzip, bzip2, xz or Zstandard are unpacked as
they are read, whatever their names; a UTF-8 byte order mark is not part of the text.
"""

import glob
import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jaxformer.data.hub import HubSource
from jaxformer.data.json_rows import jsonl_rows
from jaxformer.data.rows import Column, Policies, Row, parquet_rows, text_rows
from jaxformer.errors import UserError, did_you_mean, shorten
from jaxformer.file_formats import irregular
from jaxformer.paths import local_path

KINDS = ("builtin", "text", "jsonl", "parquet", "hf")
NOT_STANDARD = ("site-packages", "dist-packages", "__pycache__")
GRAMMAR = "builtin:python, text:GLOB, jsonl:GLOB, parquet:GLOB, hf:NAME[/CONFIG]"


class Source(Protocol):
    """Rows in a fixed order, read as often as asked."""

    @property
    def name(self) -> str:
        """As the user wrote it."""
        ...

    @property
    def identity(self) -> str:
        """What decides which text this is, wherever the command was started."""
        ...

    @property
    def size(self) -> int:
        """The value that `Row.done` grows to."""
        ...

    def fingerprint(self) -> str:
        """Changes when the text may have changed; cheap, without reading it."""
        ...

    def rows(self, columns: Sequence[Column]) -> Iterator[Row]:
        """In a source without columns, a row has one value, its text."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Rows of `files`, read by the reader of `kind`."""

    name: str
    kind: str
    identity: str
    files: tuple[Path, ...]
    policies: Policies

    @property
    def size(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def fingerprint(self) -> str:
        states = [(str(file), file.stat()) for file in self.files]
        rows = [[name, state.st_size, state.st_mtime_ns] for name, state in states]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def rows(self, columns: Sequence[Column]) -> Iterator[Row]:
        if self.kind == "jsonl":
            return jsonl_rows(self.files, columns, self.policies)
        if self.kind == "parquet":
            return parquet_rows(self.files, columns, self.policies)
        return text_rows(self.files, self.policies)


def open_source(name: str, invalid_utf8: str, missing_text: str = "error") -> Source:
    """The source that `name` describes, its files found but not read.

    Raises:
        UserError: unknown kind, missing file, or a pattern that matches nothing.
    """
    policies = Policies(invalid_utf8, missing_text)
    kind, colon, where = name.partition(":")
    if not colon or not where or kind not in KINDS:
        raise UserError(f"data source '{name}': allowed are {GRAMMAR}.{did_you_mean(kind, KINDS)}")
    if kind == "builtin":
        return _builtin(name, where)
    if kind == "hf":
        return HubSource(name, where, policies)
    pattern = os.path.abspath(local_path(where))
    files = tuple(_find(name, where, pattern))
    return FileSource(name, kind, f"{kind}:{pattern}", files, policies)


def _builtin(name: str, corpus: str) -> FileSource:
    """Files in the order of a hash of their path, so that the last part is a fair sample of all.

    The standard library has a few files that are not UTF-8 to test its decoders; they are skipped.
    """
    if corpus != "python":
        raise UserError(
            f"data source '{name}': allowed is builtin:python.{did_you_mean(corpus, ['python'])}"
        )
    root = Path(sysconfig.get_path("stdlib")).resolve()
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_STANDARD]
        files += [
            Path(folder, name)
            for name in names
            if name.endswith(".py") and os.path.isfile(os.path.join(folder, name))
        ]
    if not files:
        raise UserError(f"data source '{name}': no .py files in {root}; use text:GLOB instead")
    files.sort(key=lambda f: hashlib.sha256(f.relative_to(root).as_posix().encode()).digest())
    identity = f"{name}:{platform.python_version()}:{root}"
    return FileSource(name, "text", identity, tuple(files), Policies("skip"))


def _find(name: str, where: str, pattern: str) -> list[Path]:
    """The files of a path or pattern, sorted. A file of exactly that name takes precedence."""
    try:
        if Path(pattern).is_file():
            return [Path(pattern)]
        patterns = expand_braces(pattern)
        found = {file for each in patterns for file in _matches(name, where, each)}
    except OSError as error:  # such as a name that is too long
        raise UserError(
            f"data source '{shorten(name)}' cannot be looked for: {error.strerror}"
        ) from None
    if not found:
        raise UserError(
            f"data source '{name}': the pattern matches no file (working directory {os.getcwd()}; "
            f"** crosses folders, {{a,b}} is a or b)"
        )
    return sorted(found)


def _matches(name: str, where: str, pattern: str) -> list[Path]:
    """The files of a pattern without braces; none if it has wildcards and they match nothing."""
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        raise UserError(
            f"data source '{name}': {where} is a folder; name its files, as in "
            f"{name.rstrip('/')}/**/*.txt"
        )
    if kind := irregular(path):
        raise UserError(f"data source '{name}': {where} is {kind}; name files")
    if path.is_symlink():
        raise UserError(f"data source '{name}': {where} is a link that leads to no file")
    if not glob.has_magic(pattern):
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        raise UserError(
            f"data source '{name}': no such file in {path.parent}."
            f"{did_you_mean(path.name, siblings)}"
        )
    matches = (Path(match) for match in glob.glob(pattern, recursive=True))
    return [file for file in matches if file.is_file()]


def expand_braces(pattern: str) -> list[str]:
    """`a{b,c}d` → `abd`, `acd`, and so on inside; braces without a comma stand for themselves."""
    depth, start, commas = 0, 0, []
    for place, character in enumerate(pattern):
        if character == "{":
            depth += 1
            if depth == 1:
                start, commas = place, [place]
        elif character == "," and depth == 1:
            commas.append(place)
        elif character == "}" and depth:
            depth -= 1
            if depth == 0 and len(commas) > 1:
                cuts = zip(commas, [*commas[1:], place], strict=True)
                choices = [pattern[begin + 1 : end] for begin, end in cuts]
                before, after = pattern[:start], pattern[place + 1 :]
                return [
                    expanded
                    for choice in choices
                    for expanded in expand_braces(before + choice + after)
                ]
    return [pattern]
