"""What `jaxformer data prepare` and `inspect` do where `data.kind` is images or audio."""

from typing import TYPE_CHECKING

from jaxformer.config import DataConfig
from jaxformer.data.audio.rows import AudioRows
from jaxformer.data.audio.store import AudioStore
from jaxformer.data.audio.transcripts import TranscriptRows
from jaxformer.data.class_names import ClassNames
from jaxformer.data.images.captions import CaptionedRows
from jaxformer.data.images.rows import ImageRows
from jaxformer.data.images.store import ImageStore
from jaxformer.data.manifest import UnusableStoreError
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.errors import UserError
from jaxformer.terminal import say

if TYPE_CHECKING:
    from rich.table import Table

Rows = ImageRows | CaptionedRows | AudioRows | TranscriptRows
Purposes = dict[str, list[Rows]]


def prepare_media(data: DataConfig) -> None:
    """Makes every store that the configuration needs, and says what is there.

    Raises:
        UserError: a source is wrong, or its classes are not those of the others.
    """
    for purpose, parts in _by_purpose(Stores(data, tokenizer_of(data))).items():
        for part in parts:
            store = part.store
            say(f"{store.manifest.source}: {part.words} {purpose} ({store.place})")


def inspect_media(data: DataConfig) -> None:
    """Prints a table of each store, with the rows of every class, or a few texts.

    Raises:
        UserError: a store's files do not have the hashes of its manifest.
    """
    from rich.console import Console

    console, tokenizer = Console(), tokenizer_of(data)
    purposes = _by_purpose(Stores(data, tokenizer))
    parts = [part for parts in purposes.values() for part in parts]
    for place, store in {part.store.place: part.store for part in parts}.items():
        try:
            store.verify()
        except UnusableStoreError as reason:
            what = "pictures" if data.images is not None else "recordings"
            raise UserError(
                f"store of {what} {place}: {reason}. Remove {store.manifest.index} there; the next "
                f"command decodes them again"
            ) from None
        console.print(_table(store, tokenizer, purposes))


def _by_purpose(stores: Stores) -> Purposes:
    """The rows to train on in any stage, each once, and those to validate on."""
    stages = [stores.for_stage(data) for data in stores.data.of_stages]
    training = [part for stage in stages for part in stage.training]
    return {
        "to train on": [*{part.store.place: part for part in _of_media(training)}.values()],
        "to validate on": _of_media(stores.validation),
    }


def _of_media(parts: object) -> list[Rows]:
    assert isinstance(parts, list | tuple)
    return [part for part in parts if isinstance(part, Rows)]


def _table(store: ImageStore | AudioStore, tokenizer: Tokenizer, purposes: Purposes) -> "Table":
    from rich.table import Table

    manifest = store.manifest
    table = Table(title=manifest.source, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        **store.facts(tokenizer.names if isinstance(tokenizer, ClassNames) else ()),
        "left out": f"{manifest.left_out:,}",
        **{
            purpose: part.words
            for purpose, parts in purposes.items()
            for part in parts
            if part.store.place == store.place
        },
        "sha256": manifest.sha256,
        "folder": str(store.place),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
