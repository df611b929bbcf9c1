"""Where a run may lie: on a disk, or in a bucket of Google Cloud Storage, as Orbax takes it."""

import contextlib
import importlib.util
import os
from pathlib import Path
from typing import cast

from jaxformer.schema import UserError

BUCKET = "gs://"


def locate_path(name: str | os.PathLike) -> Path:
    """`gs://BUCKET/FOLDER` as a path of `etils.epath`, which answers as one of pathlib does; any
    other name as a path on a disk.

    Raises:
        UserError: a bucket, and nothing installed to reach it.
    """
    if not is_remote(name):
        return Path(name)
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f'{name} is in a bucket; to reach it: pip install "jaxformer[gcs]"')
    from etils import epath

    return cast(Path, epath.Path(name))


def is_remote(path: str | os.PathLike) -> bool:
    return str(path).startswith(BUCKET)


def nearest_existing(path: Path) -> Path:
    """The path on a disk, or the nearest folder above it that is there, to see what may be made."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file under the folder, by its path there; of one that is being written or
    removed, what there is."""
    if not is_remote(folder):
        sizes = {}
        for parent, _, names in os.walk(folder):
            for file in (Path(parent, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
        return sizes
    import gcsfs

    place = str(folder).removeprefix(BUCKET).rstrip("/") + "/"
    bucket = gcsfs.GCSFileSystem()
    bucket.invalidate_cache()
    found = bucket.find(place, detail=True)
    return {name.removeprefix(place): info["size"] for name, info in found.items()}


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    if is_remote(path):
        path.write_text(text)  # an object is there when it is there whole
        return
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def append_text(path: Path, text: str) -> None:
    """Add to the end of a file, which need not be there yet; an object is written anew."""
    if is_remote(path):
        path.write_text((path.read_text() if path.exists() else "") + text)
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
