"""Long texts come to the store in parts, and are what they are in one."""

import gzip
import io
import lzma
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxformer.data import arrow_rows, long_text, shards, text_rows
from jaxformer.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxformer.data.long_text import LongText, utf8_bytes
from jaxformer.data.plans import plan_of
from jaxformer.data.rows import Column, Policies
from jaxformer.data.sources import open_source
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.data.units import FilePart
from jaxformer.data.unpacking import BYTE_ORDER_MARK
from jaxformer.errors import UserError
from jaxformer.storage import Place
from tests.data.test_store import open_store

TEXT = "naïve 日本語 🎉 the cat sat, 12 times\n" * 20


def test_a_store_of_a_text_in_parts_is_that_of_the_whole_text(
    make_data, write_texts, bpe: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [("bytes", TEXT), ("bpe", TEXT), ("ids:13", "3 0 12 " * 60)]
    texts += [("ids:13", "12\n0\n3\n" * 60), ("ids:13", "3" + " " * 60 + "0")]
    for number, (name, text) in enumerate(texts):
        tokenizer = bpe if name == "bpe" else load_tokenizer(name)
        source = write_texts([text, "3", text], folder=str(number))
        stores = []
        for block in (2**15, 7):
            for module in (long_text, text_rows):
                monkeypatch.setattr(module, "BLOCK", block)
            monkeypatch.setattr(text_rows, "HELD", 10 * block)
            monkeypatch.setattr("jaxformer.data.pieces.BLOCK", block)
            monkeypatch.setattr(shards, "APPENDED_AT_ONCE", 10 * block)
            data = make_data(source=source, cache_dir=f"{source[5:-5]}cache{block}")
            stores.append(open_store(data, tokenizer))
        whole, parted = stores
        ids = tokenizer.encode_documents([text])[0]
        np.testing.assert_array_equal(whole.tokens[1 : len(ids) + 1], ids)
        assert whole.manifest.sha256 == parted.manifest.sha256
        assert whole.manifest.text_bytes == 2 * len(text.encode()) + 1


@pytest.mark.parametrize("block", [1, 4, 5, 11])
def test_blocks_of_utf8_joined_are_the_text_also_where_bytes_are_replaced(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_text, "BLOCK", block)
    random = np.random.default_rng(0)
    for data in (
        TEXT[:60].encode(),
        b"\xe3\x81",
        random.choice([0x41, 0x80, 0xE3, 0xF0, 0x9F], 99),
    ):
        data = bytes(data)
        text = LongText(partial(io.BytesIO, data), "replace", "text")
        assert "".join(text.blocks()) == str(text) == data.decode(errors="replace")
        assert utf8_bytes(text) == len(str(text).encode())


def written_in_each_way(data: bytes, folder: Path) -> list[Path]:
    """Files of the same text: plain, with a byte order mark, and compressed."""
    files = {
        "plain.txt": data,
        "marked.txt": BYTE_ORDER_MARK + data,
        "packed.gz": gzip.compress(data),
        "packed.xz": lzma.compress(BYTE_ORDER_MARK + data),
    }
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


@pytest.mark.parametrize("block", [1, 3, 7])
@pytest.mark.parametrize("content", [TEXT.encode(), TEXT.encode()[:77] + b"\xe3\x81"])
def test_a_file_that_is_read_again_gives_the_store_of_one_that_is_held(
    content: bytes, block: int, make_data, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in written_in_each_way(content, tmp_path / "texts"):
        options = {"source": f"text:{file}", "invalid_utf8": "replace", "deduplicate": {}}
        held = open_store(make_data(cache_dir=str(tmp_path / f"held {file.name}"), **options))
        with monkeypatch.context() as patch:
            patch.setattr(long_text, "BLOCK", block)
            patch.setattr(text_rows, "BLOCK", block)
            patch.setattr(text_rows, "HELD", 2 * block)
            patch.setattr(shards, "APPENDED_AT_ONCE", 10 * block)
            again = open_store(make_data(cache_dir=str(tmp_path / file.name), **options))
        assert held.manifest.model_dump() == again.manifest.model_dump()
        assert held.manifest.text_bytes == len(content.decode(errors="replace").encode())


@pytest.mark.parametrize("held", [2**15, 2**22])
@pytest.mark.parametrize("after", [b"a", b""])
def test_a_byte_of_a_long_text_that_is_not_utf8_is_named_by_its_place(
    tmp_path, held: int, after: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_rows, "HELD", held)
    for file in written_in_each_way(b"a" * 100_000 + b"\xe3\x81" + after, tmp_path / "texts"):
        part = FilePart(Place(str(file)), file.stat().st_size)
        message = rf"{file.name}: byte 0xe3 at offset 100000 is not UTF-8"
        with pytest.raises(UserError, match=message):
            list(text_rows.text_rows(part, [], Policies()))
        [row] = text_rows.text_rows(part, [], Policies(invalid_utf8="skip"))
        assert (row.values, row.left_out) == (None, "not_utf8")
        [row] = text_rows.text_rows(part, [], Policies(invalid_utf8="replace"))
        assert row.values is not None
        assert str(row.values[0]) == "a" * 100_000 + "\ufffd" + after.decode()


def test_an_empty_file_is_an_empty_text(tmp_path) -> None:
    for file in written_in_each_way(b"", tmp_path / "texts")[:3]:
        [row] = text_rows.text_rows(FilePart(Place(str(file)), 0), [], Policies())
        assert row.values == ("",)


@pytest.mark.parametrize("change", ["other bytes", "longer", "empty", "removed"])
def test_a_file_that_changes_while_it_is_read_is_told(
    change: str, make_data, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, content = tmp_path / "text.txt", b"the cat sat " * 500
    file.write_bytes(content)
    monkeypatch.setattr(text_rows, "HELD", 100)
    monkeypatch.setattr(text_rows, "BLOCK", 100)
    first_reading = LongText.__init__

    def changed_after(self: LongText, *arguments: Any, **options: Any) -> None:
        first_reading(self, *arguments, **options)
        changes = {"other bytes": b"a\xff" * 3000, "longer": 2 * content, "empty": b""}
        file.unlink() if change == "removed" else file.write_bytes(changes[change])

    monkeypatch.setattr(LongText, "__init__", changed_after)
    message = "there is no such file" if change == "removed" else "changed while it was read; run"
    with pytest.raises(UserError, match=message):
        open_store(make_data(source=f"text:{file}"))


def test_a_text_of_many_shards_is_never_held(
    make_data, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 30_000_000
    (tmp_path / "text.txt").write_bytes(b"the cat sat, 12 times\n" * (size // 22))
    monkeypatch.setattr(shards, "APPENDED_AT_ONCE", 2**16)
    data = make_data(source=f"text:{tmp_path}/text.txt")
    plan = plan_of(data.sources[0], data, load_tokenizer("bytes"), shard_bytes=2**20)
    tracemalloc.start()
    plan.write(0, tmp_path / "making", lambda done: None)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < size / 3


def test_a_long_text_of_a_table_is_that_of_a_short_one(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [TEXT, None, "", TEXT[:9], TEXT]
    pq.write_table(pa.table({"text": pa.array(texts)}), tmp_path / "rows.parquet")
    monkeypatch.setattr(arrow_rows, "BYTES_AT_ONCE", 1)
    source = open_source(f"parquet:{tmp_path}/rows.parquet", "error", missing_text="skip")
    rows = source.rows([Column("text", str)])
    assert [row.values and row.values[0] for row in rows] == texts
