"""Stores in a bucket: what is fetched, kept and checked, and what is said when it cannot be."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from jaxformer import storage
from jaxformer.config import DataConfig
from jaxformer.data.blocks import BlocksInBucket
from jaxformer.data.loader import BatchesInHand, iterate, train_batches
from jaxformer.data.row_cache import RowCache
from jaxformer.data.store import TokenStore
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from jaxformer.parallel import processes
from jaxformer.storage import Place, Unreachable
from tests.data.contents import tokens_of
from tests.data.test_store import documents_of, open_store, write_rows

LENGTH = 1024


@pytest.fixture
def make(bucket, make_data, tmp_path: Path):
    """Configurations whose store is in the bucket, in a folder of the test's own."""
    source = write_rows(tmp_path / "rows.jsonl", 2000)

    def data(**options: object) -> DataConfig:
        place = f"gs://runs/{tmp_path.name}"
        keys = {"source": source, "store_dir": place, "sequence_length": LENGTH, "prefetch": 0}
        return make_data(**keys | options)

    return data


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of every request for blocks."""
    sizes: list[int] = []
    read = BlocksInBucket._bytes

    def count(self, blocks) -> bytes:
        data = read(self, blocks)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(BlocksInBucket, "_bytes", count)
    return sizes


@pytest.fixture
def of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of eight processes."""
    monkeypatch.setattr(processes, "count", lambda: 8)


def epoch(data: DataConfig, held: np.ndarray) -> list:
    stores = Stores(data, load_tokenizer("bytes"))
    dataset = train_batches(stores, batch_size=8, seed=0, held=held)
    batches = iterate(dataset, 0, data.prefetch, stores.reading_threads)
    taken = [next(batches) for _ in range(len(stores.training[0]) // 8)]
    batches.close()
    return taken


def tokens_bytes(store: TokenStore) -> int:
    return sum(shard.files[".tokens"].bytes for shard in store.manifest.shards)


def test_a_store_is_made_once_in_a_bucket_and_holds_what_one_on_a_disk_does(make, capfd) -> None:
    remote, local = open_store(make()), open_store(make().model_copy(update={"store_dir": None}))
    assert remote.place.name.startswith("gs://")
    assert remote.manifest == local.manifest
    np.testing.assert_array_equal(tokens_of(remote), tokens_of(local))
    capfd.readouterr()
    assert documents_of(open_store(make()))[1999] == f"document 1999 {'x' * (1999 % 90)}"
    assert "tokens in" not in capfd.readouterr().err


def test_one_of_eight_fetches_its_rows_alone_and_each_once(make, fetched, of_eight) -> None:
    store = open_store(make())
    held = np.asarray([5])
    cold = epoch(make(), held)
    share = sum(fetched) / tokens_bytes(store)
    assert 0.9 / 8 < share < 1.2 / 8  # a row of 1,024 tokens and the one after takes nine blocks
    fetched.clear()
    warm = epoch(make(), held)
    assert sum(fetched) == 0
    whole = epoch(make().model_copy(update={"store_dir": None}), np.arange(8))
    for first, second, batch in zip(cold, warm, whole, strict=True):
        for one, same, all_rows in zip(first, second, batch, strict=True):
            np.testing.assert_array_equal(one, all_rows[held])
            np.testing.assert_array_equal(same, one)


def test_a_process_alone_fetches_large_pieces_each_once(make, fetched) -> None:
    store = open_store(make())
    epoch(make(), np.arange(8))
    assert len(fetched) == 1
    assert sum(fetched) == tokens_bytes(store)
    assert len(epoch(make(cache_bytes=0), np.arange(8))) > 0  # row by row
    assert len(fetched) > 100


def test_what_a_cache_has_lost_or_altered_is_fetched_again(make, fetched, of_eight) -> None:
    epoch(make(), np.asarray([5]))
    requests = len(fetched)
    [copy] = Path(make().cache_dir, "rows").rglob("*.tokens")
    content = bytearray(copy.read_bytes())
    used = np.flatnonzero(np.frombuffer(content, np.uint8))
    content[used[len(used) // 2]] ^= 1
    copy.write_bytes(content)
    fetched.clear()
    epoch(make(), np.asarray([5]))
    assert len(fetched) == 1
    copy.unlink()
    epoch(make(), np.asarray([5]))
    assert len(fetched) == 1 + requests


def test_a_cache_keeps_to_its_limit_and_the_rows_stay_the_same(make, of_eight) -> None:
    limit = 40_000
    rows = epoch(make(cache_bytes=limit), np.asarray([5]))
    held = sum(
        path.stat().st_blocks * 512 for path in Path(make().cache_dir, "rows").rglob("*.tokens")
    )
    assert held <= 2 * limit
    for one, other in zip(rows, epoch(make(), np.asarray([5])), strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)


def test_a_full_disk_turns_the_cache_off_and_nothing_else(
    make, of_eight, monkeypatch, capfd
) -> None:
    rows = epoch(make(), np.asarray([5]))

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    again = epoch(make(cache_dir=f"{make().cache_dir}_full"), np.asarray([5]))
    for one, other in zip(rows, again, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
    said = capfd.readouterr().err
    assert said.count("is off from here on (No space left on device)") == 1


def test_a_cache_leaves_files_alone_that_are_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("precious" * 100)
    RowCache(tmp_path, 1).write(["store", "a"], 0, b"0" * 9000)
    assert (tmp_path / "mine" / "a.txt").exists()


def test_a_cache_removes_what_was_written_longest_ago(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, 100_000)
    for number, name in enumerate(["a", "b", "c", "d"]):
        cache.write(["store", name], 4096 * number, bytes([number + 1]) * 40_000)
        os.utime(tmp_path / "store" / name, (number, number))
    assert not (tmp_path / "store" / "a").exists()
    assert cache.read(["store", "d"], 4096 * 3, 2) == b"\4\4"
    assert cache.read(["store", "d"], 0, 2) == b"\0\0"
    assert cache.read(["store", "a"], 0, 2) == b""


@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_a_shard_altered_in_a_bucket_is_found_at_the_start_and_made_again(
    make, capfd, damage: str
) -> None:
    file = open_store(make()).place / "00000-000.tokens"
    content = file.read()
    if damage == "missing":
        file.remove()
    else:
        other = content[:-300] if damage == "cut" else content[:50] + b"?" + content[51:]
        file.write(other)
    prepared = DataConfig.model_validate(
        make().model_dump() | {"source": f"store:{file.name.rpartition('/')[0]}"}
    )
    with pytest.raises(UserError, match="00000-000.tokens .*; give the folder that data prepare"):
        open_store(prepared)
    assert len(documents_of(open_store(make()))) == 2000
    assert "made again because 00000-000.tokens" in capfd.readouterr().err
    assert file.read() == content


def test_a_shard_altered_while_it_is_read_is_fetched_once_more_and_then_named(
    make, fetched
) -> None:
    store = open_store(make(cache_bytes=0))
    file = store.place / "00000-000.tokens"
    content = file.read()
    file.write(content[:50] + b"?" + content[51:])
    with pytest.raises(UserError, match="00000-000.tokens has been altered. Prepare the store aga"):
        store.read(0, 10)
    assert len(fetched) == 2
    assert len(store.read(1000, 1010).tokens) == 10
    file.write(content[:5000])
    with pytest.raises(UserError, match="00000-000.tokens is cut short"):
        store.read(100_000, 100_010)
    file.remove()
    with pytest.raises(UserError, match="00000-000.tokens is missing"):
        store.read(0, 10)
    file.write(content)


def test_a_bucket_that_does_not_answer_is_asked_again_for_a_while(make, monkeypatch) -> None:
    store = open_store(make(cache_bytes=0))
    monkeypatch.setattr(storage, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.05)
    file = store.place / "00000-000.tokens"
    asked = []

    def failing(times: int):
        def cat_file(*arguments: object, **keys: object) -> bytes:
            asked.append(arguments)
            if len(asked) <= times:
                raise ConnectionResetError("reset by peer")
            return b"here"

        return cat_file

    monkeypatch.setattr(file._fs, "cat_file", failing(2))
    assert file.read(0, 4) == b"here"
    assert len(asked) == 3
    monkeypatch.setattr(file._fs, "cat_file", failing(10**6))
    with pytest.raises(Unreachable, match=r"could not be reached for 0 s: reset by peer"):
        file.read(0, 4)


def test_a_bucket_that_denies_access_is_named_at_once(bucket, monkeypatch) -> None:
    file = Place("gs://runs/denied/index.json")

    def denied(*arguments: object, **keys: object) -> bytes:
        raise OSError("Forbidden: runs/denied\nno permission")

    monkeypatch.setattr(file._fs, "cat_file", denied)
    with pytest.raises(UserError, match="access is denied .Forbidden: runs/denied.; check the cre"):
        file.read()


def test_batches_in_hand_outlast_the_data_until_all_processes_stop(make, monkeypatch) -> None:
    data = make(cache_bytes=0, prefetch=0)
    stores = Stores(data, load_tokenizer("bytes"))
    dataset = train_batches(stores, batch_size=8, seed=0)
    whole = iterate(dataset, 0, 0, 1)
    expected = [next(whole) for _ in range(9)]
    batches = BatchesInHand(iterate(dataset, 0, 0, 1))
    taken = [next(batches) for _ in range(5)]

    def lost(self, blocks) -> bytes:
        raise Unreachable("gone")

    monkeypatch.setattr(BlocksInBucket, "_bytes", lost)
    assert batches.lost is None
    taken += [next(batches) for _ in range(3)]
    assert str(batches.lost) == "gone"
    for one, other in zip(taken, expected, strict=False):
        np.testing.assert_array_equal(one.inputs, other.inputs)
    with pytest.raises(Unreachable):
        next(batches)
