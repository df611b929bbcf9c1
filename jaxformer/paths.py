"""Paths that users give, as files and folders that this program can reach.

On a disk, a leading `~` is the home directory. Where Orbax supports it, a path may also be in a
bucket of Google Cloud Storage.
"""

import contextlib
import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import cast

from jaxformer.errors import UserError

BUCKET = "gs://"


def locate_path(name: str | os.PathLike) -> Path:
    """`gs://BUCKET/FOLDER` as a path of `etils.epath`, which has pathlib's interface; any other
    name as a path on a disk.

    Raises:
        UserError: another scheme, the home of a user who does not exist, or a bucket without the
            package that reads it.
    """
    text = str(name)
    if not is_remote(text):
        return _on_a_disk(text, fault_of_place(text))
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f'{name} is in a bucket; to reach it: pip install "jaxformer[gcs]"')
    from etils import epath

    return cast(Path, epath.Path(text))


def local_path(name: str | os.PathLike) -> Path:
    """Like `locate_path`, for a path that must be on a disk.

    Raises:
        UserError: a bucket or another scheme, or the home of a user who does not exist.
    """
    return _on_a_disk(str(name), fault_of_local_place(str(name)))


def fault_of_place(name: str) -> str | None:
    """What is wrong with a path that may also be in a bucket; None if nothing is.

    Only the scheme is checked, so that a configuration can be checked where it is not run.
    """
    if is_remote(name):
        return None
    return _fault(name, f"a path on a disk, or {BUCKET}BUCKET/FOLDER")


def fault_of_local_place(name: str) -> str | None:
    """What is wrong with a path that must be on a disk; None if nothing is."""
    return _fault(name, "a path on a disk")


def _fault(name: str, allowed: str) -> str | None:
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name)
    if scheme is None:
        return None
    plain = name.removeprefix("file://")
    mend = f"; write {plain}" if plain != name else ""
    return f"'{name}' is a place that cannot be used here; allowed: {allowed}{mend}"


def _on_a_disk(name: str, fault: str | None) -> Path:
    if fault is not None:
        raise UserError(fault)
    expanded = os.path.expanduser(name)
    if expanded.startswith("~") and not os.path.lexists(expanded):
        user = expanded.partition("/")[0]
        raise UserError(
            f"'{name}': {user} stands for a user's home directory, and there is no such user; for "
            f"a file of that name write ./{name}"
        )
    return Path(expanded)


def is_remote(path: str | os.PathLike) -> bool:
    return str(path).startswith(BUCKET)


def nearest_existing(path: Path) -> Path:
    """The path itself if it exists, or else the nearest folder above it that does."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def same_place(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether both names lead to the same place, whether or not it exists."""
    if is_remote(one) or is_remote(other):
        return str(one) == str(other)
    return locate_path(one).resolve() == locate_path(other).resolve()


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file under the folder, by its path there; files may be written or removed
    meanwhile."""
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
        path.write_text(text)  # an object appears only once it is complete
        return
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def append_text(path: Path, text: str) -> None:
    """Append to a file, which need not exist yet; an object in a bucket is rewritten."""
    if is_remote(path):
        path.write_text((path.read_text() if path.exists() else "") + text)
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def remove_tree(folder: Path) -> None:
    """Remove a folder and everything in it, if it exists."""
    if not folder.exists():
        return
    if is_remote(folder):
        from etils import epath

        epath.Path(folder).rmtree()
    else:
        shutil.rmtree(folder)
