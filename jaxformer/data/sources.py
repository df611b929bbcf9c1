"""Where text comes from: the grammar of `data.source`.

- `builtin:python`: the Python standard library's source, on every machine.
- `text:GLOB`: one document per file, in sorted order.
- `jsonl:GLOB`: one document per line, from `data.column`; or per item, if a file is one array.
- `parquet:GLOB`: one document per row, from `data.column`.
- `arrayrecord:GLOB`: one document per record: JSON, a `tf.train.Example`, or text in the column
  `text`. These files must be on a disk.
- `webdataset:GLOB`: one document per sample of tar files; a column is what follows the first dot in
  a file's name, such as `txt`, or `json.caption` for a field of a JSON file.
- `hf:FOLDER`: a dataset or dataset dictionary saved by `datasets.save_to_disk`.
- `hf:NAME`, `hf:ORG/NAME` or `hf:ORG/NAME/CONFIG`: a dataset of the Hugging Face Hub. One slash
  always separates organisation and name, so an old dataset without organisation that needs a
  configuration is written with the organisation it has now (`Salesforce/wikitext/...`).
  `@REVISION` may follow (a branch, a tag or a commit), and `:SPLIT` either hf form
  (`hf:FOLDER:validation`, `hf:ORG/NAME@v2:train[:10%]`); the split is `train` if not given. Only
  the Hub's datasets can be cut to part of a split.

Files are on a disk, or anywhere that `fsspec` serves: `gs://`, `s3://`, `https://`. On a disk they
are relative to the working directory, and `~` is the home directory. `**` crosses folders, `{a,b}`
is a or b, and `{00..99}` all of these numbers; a web server cannot list its files, and takes only
the last two. Files compressed with gzip, bzip2, xz or Zstandard are unpacked as they are read,
whatever their names; a UTF-8 byte order mark is not part of the text. All are read as streams.
"""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from jaxformer.config.data import FILES, SOURCES
from jaxformer.data.file_source import FileSource
from jaxformer.data.finding import Found, absolute_pattern, find_files
from jaxformer.data.hub import HubSource
from jaxformer.data.rows import Column, Policies, Row
from jaxformer.data.saved_datasets import SavedSource, saved_folder
from jaxformer.data.units import Unit
from jaxformer.errors import UserError, did_you_mean
from jaxformer.storage import Place

KINDS = ("builtin", *FILES, "hf")
NOT_STANDARD = ("site-packages", "dist-packages", "__pycache__")


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
        """The value that `Row.done` grows to, if all rows are read."""
        ...

    def fingerprint(self) -> str:
        """Changes when the text may have changed; cheap, without reading it."""
        ...

    def units(self, target_bytes: int) -> tuple[Unit, ...]:
        """Units of about `target_bytes`; their rows, one unit after another, are all rows in their
        order. Every process that opens the same source by its name has the same units."""
        ...

    def rows(self, columns: Sequence[Column], unit: Unit | None = None) -> Iterator[Row]:
        """The rows of a unit, or all; in a source without columns, each has one value, its text."""
        ...


def open_source(
    name: str, invalid_utf8: str, missing_text: str = "error", bad_rows: str = "error"
) -> Source:
    """The source that `name` describes, its files found but not read.

    Raises:
        UserError: unknown kind, missing file, or a pattern that matches nothing.
    """
    policies = Policies(invalid_utf8, missing_text, bad_rows)
    kind, colon, where = name.partition(":")
    if kind == "store":
        raise UserError(f"data source '{name}' holds tokens; name the text here that they are of")
    if not colon or not where or kind not in KINDS:
        raise UserError(f"data source '{name}': allowed are {SOURCES}.{did_you_mean(kind, KINDS)}")
    if kind == "builtin":
        return _builtin(name, where)
    if kind == "hf":
        if saved_folder(where):
            return SavedSource(name, where, policies)
        return HubSource(name, where, policies)
    identity = f"{kind}:{absolute_pattern(where)}"
    return FileSource(name, kind, identity, policies, partial(find_files, name, where))


def _builtin(name: str, corpus: str) -> FileSource:
    """The standard library has a few files that are not UTF-8 to test its decoders; they are
    skipped."""
    if corpus != "python":
        raise UserError(
            f"data source '{name}': allowed is builtin:python.{did_you_mean(corpus, ['python'])}"
        )
    root = Path(sysconfig.get_path("stdlib")).resolve()
    identity = f"{name}:{platform.python_version()}:{root}"
    return FileSource(name, "text", identity, Policies("skip"), partial(_python_files, name, root))


def _python_files(name: str, root: Path) -> Found:
    """In the order of a hash of their path, so that the last part is a fair sample of all."""
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
    return {place: place.stored() for place in map(Place, map(str, files))}
