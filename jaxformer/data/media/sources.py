"""Where pictures and recordings come from: the grammar of `data.source` where `data.kind` is images
or audio.

- `parquet:GLOB`: one of them per row, its file's bytes in a column as `datasets` writes them.
- `hf:NAME[/CONFIG][@REVISION][:SPLIT]`: a dataset of the Hugging Face Hub, or a folder that
  `datasets.save_to_disk` has written; the split is `train` if not given.
- `imagefolder:FOLDER`, `audiofolder:FOLDER`: files in FOLDER/CLASS, also in folders inside of it;
  or, with texts, files that FOLDER/metadata.jsonl or FOLDER/metadata.csv names.
- `webdataset:GLOB`: tar files; a column is what follows the first dot in a file's name.

Nothing of a source is copied to this machine's disk but into a store of what is decoded.
"""

from collections.abc import Iterator
from typing import Protocol

from jaxformer.data.hub import HubSource
from jaxformer.data.media.described_folder import DescribedFolder
from jaxformer.data.media.folder import FolderSource
from jaxformer.data.media.records import Labels, Record, Wanted
from jaxformer.data.media.tables import HubTable, TableFiles
from jaxformer.data.rows import Policies
from jaxformer.data.saved_datasets import SavedSource, saved_folder


class MediaSource(Protocol):
    """Pictures or recordings in a fixed order, read as often as asked.

    Raises:
        UserError: a file is damaged, or a column missing; raised by all methods.
    """

    name: str  # as the user wrote it
    identity: str  # what decides which rows these are, wherever the command was started

    @property
    def size(self) -> int:
        """The value that `Record.done` grows to, about; 0 if it is not known."""
        ...

    @property
    def labels(self) -> Labels: ...

    @property
    def traces(self) -> set[str]:
        """Names that another source shares if it has the same rows."""
        ...

    def fingerprint(self) -> str:
        """Changes when the rows may have changed; cheap, without reading them."""
        ...

    def records(self, limit: int | None) -> Iterator[Record]:
        """All rows; labels that are numbers without names are below `limit`, if it is given."""
        ...


def open_media(name: str, wanted: Wanted) -> MediaSource:
    """The source that `name` describes, its files found but not read.

    Raises:
        UserError: a missing file, or a pattern that matches nothing.
    """
    kind, _, where = name.partition(":")
    if kind in ("imagefolder", "audiofolder"):
        folder = FolderSource if wanted.key == "label" else DescribedFolder
        return folder(name, where, wanted)
    if kind == "hf":
        of = SavedSource if saved_folder(where) else HubSource
        return HubTable(of(name, where, Policies()), wanted)
    return TableFiles(name, kind, where, wanted)
