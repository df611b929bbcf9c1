"""What makes a checkpoint trustworthy: a manifest with the hash of every file, written last.

`STEP/manifest.json` has the size and the SHA-256 of every file of the step, and of itself. It is
written into the folder before the folder gets its name, so that a step is complete or absent. Two
files are left out, Orbax's notes on the save itself: it writes them after the manifest, and nothing
is read from them.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.errors import UserError
from jaxformer.file_formats import irregular
from jaxformer.paths import file_sizes, is_remote, replace_text
from jaxformer.reading import read_json
from jaxformer.terminal import progress

FORMAT = 2  # 1 had no hashes
MANIFEST = "manifest.json"
NOT_HASHED = {"_CHECKPOINT_METADATA", "commit_success.txt", MANIFEST}
ASIDE = ".damaged"  # follows the step in the name of a damaged one that was renamed
THREADS = 4
PIECE = 1 << 22

Json = dict[str, Any]


class Fault(NamedTuple):
    """A file of a step that is not what the manifest says."""

    file: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.file}: expected {self.expected}, found {self.found}"


class DamagedError(UserError):
    """A step that is not what was saved."""

    def __init__(self, folder: Path, faults: list[Fault]) -> None:
        self.faults = faults
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        super().__init__(f"checkpoint {folder} is damaged: {faults[0]}{more}")


def seal(folder: Path, manifest: Json, known: Mapping[str, str] | None = None) -> None:
    """Write the manifest, with the hash of every file that is in the folder now.

    Prints no progress: a run that continues meanwhile has the terminal.

    Args:
        known: hashes that were computed while the files were written; the other files are read.
    """
    sizes, known = _sizes(folder), known or {}
    unknown = [name for name in sizes if name not in known]
    hashes = {**known, **_hashes(folder, unknown, lambda done: None)}
    files = {name: {"bytes": sizes[name], "sha256": hashes[name]} for name in sizes}
    whole = json.loads(json.dumps({**manifest, "format": FORMAT, "files": files}))
    replace_text(folder / MANIFEST, json.dumps({"sha256": _digest(whole), **whole}, indent=1))


def read_manifest(folder: Path) -> Json:
    """The manifest of a step.

    Raises:
        DamagedError: it is missing, or not as it was written.
        UserError: it is of a format that this version does not read.
    """
    if not is_remote(folder) and (kind := irregular(folder / MANIFEST)):
        raise DamagedError(folder, [Fault(MANIFEST, "a file", kind)])
    try:
        manifest = read_json((folder / MANIFEST).read_bytes(), MANIFEST)
    except FileNotFoundError:
        if (folder / "manifest").is_dir():
            raise UserError(
                f"{folder} has checkpoint format 1, which has no hashes; this version reads format "
                f"{FORMAT}: use the version that wrote it, or train again"
            ) from None
        fault = Fault(MANIFEST, "the file that is written last", "none: the step is incomplete")
        raise DamagedError(folder, [fault]) from None
    except IsADirectoryError:
        raise DamagedError(folder, [Fault(MANIFEST, "a file", "a folder")]) from None
    except UserError:
        raise DamagedError(folder, [Fault(MANIFEST, "JSON", "something else")]) from None
    if not isinstance(manifest, dict):
        raise DamagedError(folder, [Fault(MANIFEST, "JSON of a manifest", "something else")])
    if isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT:
        raise UserError(
            f"{folder} has checkpoint format {manifest['format']}; this version reads format "
            f"{FORMAT}: install a newer jaxformer"
        )
    expected = manifest.pop("sha256", None)
    if expected != _digest(manifest):
        fault = Fault(MANIFEST, f"sha256 {expected}", f"sha256 {_digest(manifest)}")
        raise DamagedError(folder, [fault])
    return manifest


def wrong_sizes(folder: Path, files: Mapping[str, Json]) -> list[Fault]:
    """The faults of files that are missing or have another size."""
    there, faults = _sizes(folder), []
    for name, record in files.items():
        if name not in there:
            faults.append(Fault(name, f"{record['bytes']:,} bytes", "no file"))
        elif there[name] != record["bytes"]:
            faults.append(Fault(name, f"{record['bytes']:,} bytes", f"{there[name]:,}"))
    return faults


def wrong_hashes(folder: Path, files: Mapping[str, Json]) -> list[Fault]:
    """The faults of files that are missing, or have another size or hash; reads them all."""
    faults = wrong_sizes(folder, files)
    known = {fault.file for fault in faults}
    rest = [name for name in files if name not in known]
    total = sum(files[name]["bytes"] for name in rest)
    with progress(f"verifying {folder}", total) as report:
        hashes = _hashes(folder, rest, report)
    for name, found in hashes.items():
        if found != files[name]["sha256"]:
            faults.append(Fault(name, f"sha256 {files[name]['sha256']}", f"sha256 {found}"))
    return faults


def _sizes(folder: Path) -> dict[str, int]:
    sizes = file_sizes(folder)
    return {name: sizes[name] for name in sorted(sizes.keys() - NOT_HASHED)}


def _hashes(folder: Path, names: Iterable[str], report: Callable[[int], None]) -> dict[str, str]:
    """SHA-256 of the files, several at a time."""
    done, lock = 0, threading.Lock()

    def hash_one(name: str) -> tuple[str, str]:
        nonlocal done
        digest = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
                with lock:
                    done += len(piece)
                    report(done)
        return name, digest.hexdigest()

    with ThreadPoolExecutor(THREADS, "sha256") as pool:
        return dict(pool.map(hash_one, names))


def _digest(manifest: Json) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
