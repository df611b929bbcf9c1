"""Long texts come to the store in parts, and are what they are in one."""

import numpy as np
import pytest

from jaxformer.data import long_text, shards, text_rows
from jaxformer.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxformer.data.long_text import LongText, utf8_bytes
from jaxformer.data.rows import Policies
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.data.units import FilePart
from jaxformer.errors import UserError
from jaxformer.storage import Place
from tests.data.test_store import open_store

TEXT = "naïve 日本語 🎉 the cat sat, 12 times\n" * 20


def test_a_store_of_a_text_in_parts_is_that_of_the_whole_text(
    make_data, write_texts, bpe: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = "3 0 12 " * 60
    texts = {"bytes": TEXT, "bpe": TEXT, "ids:13": numbers}
    for name, text in texts.items():
        tokenizer = bpe if name == "bpe" else load_tokenizer(name)
        source = write_texts([text, "3", text], folder=name)
        stores = []
        for block in (2**15, 7):
            for module in (long_text, text_rows):
                monkeypatch.setattr(module, "BLOCK", block)
            monkeypatch.setattr("jaxformer.data.pieces.BLOCK", block)
            monkeypatch.setattr(shards, "APPENDED_AT_ONCE", 10 * block)
            data = make_data(source=source, cache_dir=f"{source[5:-5]}cache{block}")
            stores.append(open_store(data, tokenizer))
        whole, parted = stores
        ids = tokenizer.encode_documents([text])[0]
        np.testing.assert_array_equal(whole.tokens[1 : len(ids) + 1], ids)
        assert whole.manifest.sha256 == parted.manifest.sha256
        assert whole.manifest.text_bytes == 2 * len(text.encode()) + 1


@pytest.mark.parametrize("block", [4, 5, 11])
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
        text = LongText(data, "replace")
        assert "".join(text.blocks()) == str(text) == data.decode(errors="replace")
        assert utf8_bytes(text) == len(str(text).encode())


def test_a_byte_of_a_long_text_that_is_not_utf8_is_named_by_its_place(tmp_path) -> None:
    file = tmp_path / "long.txt"
    file.write_bytes(b"a" * 100_000 + b"\xff" + b"a")
    part = FilePart(Place(str(file)), 100_002)
    with pytest.raises(UserError, match=r"long.txt: byte 0xff at offset 100000 is not UTF-8"):
        list(text_rows.text_rows(part, [], Policies()))
    skipped = text_rows.text_rows(part, [], Policies(invalid_utf8="skip"))
    assert [(row.values, row.left_out) for row in skipped] == [(None, "not_utf8")]
