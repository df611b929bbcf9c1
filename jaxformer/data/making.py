"""Where unfinished files of stores lie, and what keeps processes out of each other's way."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from jaxformer.config import DataConfig
from jaxformer.errors import RunFailed, UserError
from jaxformer.paths import local_path
from jaxformer.storage import Place
from jaxformer.terminal import say

SAID_AFTER_SECONDS = 2.0
MAKING = "making"  # folders of files that are not finished
LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


@contextmanager
def making_folder(place: Place, data: DataConfig) -> Iterator[Path]:
    """A folder of this process for files that are not finished, on the disk of the store at `place`
    if that is on a disk; what dead processes of this machine have left there is removed.

    Raises:
        UserError: it cannot be written.
    """
    beside = local_path(data.cache_dir).absolute() if place.is_remote else place.path
    in_cache = place.is_remote or data.store_dir is None
    key = "data.cache_dir" if in_cache else "data.store_dir"
    try:
        beside.mkdir(parents=True, exist_ok=True)
        for left in beside.glob(f"{MAKING}-*"):
            with _alone(left / LOCK) as is_dead:
                if is_dead:
                    shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{MAKING}-", dir=beside))
    except OSError as error:
        raise _unwritable(key, beside, error) from None
    try:
        with _alone(folder / LOCK):
            yield folder
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise RunFailed(
            f"{key} {beside} cannot be written: {error.strerror}. Make room, and run the same "
            f"command again: what is done is kept"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(file: Path) -> Iterator[bool]:
    """Hold the lock of a file; yields whether no living process holds it."""
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except OSError:  # its folder has been removed meanwhile
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def locked(place: Place, data: DataConfig) -> Iterator[None]:
    """Keep other processes of this machine from making the same store; a store in a bucket may be
    made by several at once, since they write the same bytes."""
    folder = local_path(data.cache_dir).absolute()
    file = folder / f"{place.name.rpartition('/')[2]}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise _unwritable("data.cache_dir", folder, error) from None
    lock = FileLock(file)
    try:
        lock.acquire(timeout=SAID_AFTER_SECONDS)
    except Timeout:
        say(f"waiting for another process that makes this store ({file})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _unwritable(key: str, folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{key} '{folder}' cannot be written: {error.strerror}; name a folder that can"
    )
