"""Every path that a user may give, as a file or folder that this program can reach.

It lies on a disk, where a leading `~` is the home directory, or, where Orbax takes it, in a bucket
of Google Cloud Storage.
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
    """`gs://BUCKET/FOLDER` as a path of `etils.epath`, which answers as one of pathlib does; any
    other name as a path on a disk.

    Raises:
        UserError: another scheme, the home of a user who is not there, or a bucket, and nothing
            installed to reach it.
    """
    text = str(name)
    if not is_remote(text):
        return _on_a_disk(text, fault_of_place(text))
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f'{name} is in a bucket; to reach it: pip install "jaxformer[gcs]"')
    from etils import epath

    return cast(Path, epath.Path(text))


def local_path(name: str | os.PathLike) -> Path:
    """As `locate_path`, for what can only be on a disk.

    Raises:
        UserError: a bucket or another scheme, or the home of a user who is not there.
    """
    return _on_a_disk(str(name), fault_of_local_place(str(name)))


def fault_of_place(name: str) -> str | None:
    """What is wrong with a path that may also be in a bucket; None where nothing is.

    The scheme alone is looked at, so that a configuration can be checked where it is not run.
    """
    if is_remote(name):
        return None
    return _fault(name, f"a path on a disk, or {BUCKET}BUCKET/FOLDER")


def fault_of_local_place(name: str) -> str | None:
    """What is wrong with a path that has to be on a disk; None where nothing is."""
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
    """The path on a disk, or the nearest folder above it that is there, to see what may be made."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def same_place(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether both names lead to the same place, be there something or not."""
    if is_remote(one) or is_remote(other):
        return str(one) == str(other)
    return locate_path(one).resolve() == locate_path(other).resolve()


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


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, where there is one."""
    if not folder.exists():
        return
    if is_remote(folder):
        from etils import epath

        epath.Path(folder).rmtree()
    else:
        shutil.rmtree(folder)
