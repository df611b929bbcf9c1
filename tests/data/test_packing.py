from pathlib import Path

import numpy as np
import pytest

from jaxformer.batch import Batch
from jaxformer.data import store as store_module
from jaxformer.data.packing import PackedRows
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError

BOS = EOS = 256


def naive_rows(documents: list[str], begin: int, end: int, length: int) -> list[tuple]:
    """Token by token, from the definition in `packing`."""
    stream, document_of = [], []
    for number, document in enumerate(documents):
        ids = [BOS, *document.encode(), EOS]
        stream += ids
        document_of += [number] * len(ids)
    rows = []
    for first in range(begin, end - 1, length):
        row: list[tuple[int, int, int, int, bool]] = []
        segment, position = 1, 0
        for at in range(first, first + length):
            if at + 1 >= end:
                row.append((0, 0, 0, 0, False))
                continue
            if at > first and document_of[at] != document_of[at - 1]:
                segment, position = segment + 1, 0
            same = document_of[at] == document_of[at + 1]
            row.append((stream[at], stream[at + 1], position, segment, same))
            position += 1
        rows.append(tuple(zip(*row, strict=True)))
    return rows


def random_documents(seed: int, count: int, longest: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["x" * int(n) for n in rng.integers(1, longest + 1, count)]


@pytest.fixture
def make_rows(make_data, write_texts):
    def make(documents: list[str], length: int, begin: int = 0, end: int | None = None):
        data = make_data(source=write_texts(documents))
        store = Stores(data, load_tokenizer("bytes")).open(data.sources[0])
        return PackedRows(store, begin, store.manifest.tokens if end is None else end, length)

    return make


@pytest.mark.parametrize("length", [2, 3, 8, 64, 1000])
@pytest.mark.parametrize("longest", [1, 5, 40])
def test_packed_rows_equal_a_token_by_token_reference(make_rows, length: int, longest: int) -> None:
    documents = random_documents(length + longest, 30, longest)
    rows = make_rows(documents, length)
    expected = naive_rows(documents, 0, rows.end, length)
    assert len(rows) == len(expected)
    batch = rows.pack(np.arange(len(rows)))
    for array, name in zip(batch, Batch._fields, strict=True):
        reference = np.asarray([row[Batch._fields.index(name)] for row in expected])
        np.testing.assert_array_equal(array, reference, err_msg=name)
        assert array.dtype == (bool if name == "loss_mask" else np.int32)
        assert array.flags.c_contiguous


def test_rows_of_a_part_equal_the_reference_wherever_it_is_cut(make_rows) -> None:
    documents = random_documents(3, 6, 7)
    whole = make_rows(documents, 4)
    for begin in range(whole.end):
        for end in range(begin, whole.end + 1, 3):
            rows = PackedRows(whole.store, begin, end, 4)
            expected = naive_rows(documents, begin, end, 4)
            assert len(rows) == len(expected)
            batch = rows.pack(np.arange(len(rows)))
            assert rows.loss_tokens() == batch.loss_mask.sum()
            for column, array in enumerate(batch):
                assert [row[column] for row in expected] == [tuple(r) for r in array.tolist()]


def test_rows_are_packed_in_the_order_asked_for(make_rows) -> None:
    rows = make_rows(random_documents(0, 20, 9), 8)
    everything = rows.pack(np.arange(len(rows)))
    order = np.asarray([3, 0, 3, len(rows) - 1])
    for array, whole in zip(rows.pack(order), everything, strict=True):
        np.testing.assert_array_equal(array, whole[order])


def test_every_token_but_the_first_is_a_target_once(make_rows) -> None:
    rows = make_rows(random_documents(1, 25, 30), 16)
    batch = rows.pack(np.arange(len(rows)))
    targets = batch.targets[batch.segment_ids > 0]
    np.testing.assert_array_equal(targets, rows.store.tokens[1:])


def test_a_document_longer_than_a_row_goes_on_in_the_next_as_a_new_piece(make_rows) -> None:
    rows = make_rows(["abcdefghij"], 4)
    batch = rows.pack(np.arange(3))
    np.testing.assert_array_equal(batch.positions[:2], [[0, 1, 2, 3], [0, 1, 2, 3]])
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
    assert bytes(batch.inputs[1].tolist()) == b"defg"
    assert batch.loss_mask[:2].all()


def test_the_loss_never_crosses_into_the_next_document(make_rows) -> None:
    batch = make_rows(["ab", "c"], 6).pack(np.asarray([0]))
    np.testing.assert_array_equal(batch.inputs[0], [256, 97, 98, 256, 256, 99])
    np.testing.assert_array_equal(batch.targets[0], [97, 98, 256, 256, 99, 256])
    np.testing.assert_array_equal(batch.loss_mask[0], [True, True, True, False, True, True])
    np.testing.assert_array_equal(batch.segment_ids[0], [1, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(batch.positions[0], [0, 1, 2, 3, 0, 1])


def test_tokens_that_were_altered_are_refused_when_they_are_read(
    make_rows, make_data, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stores too large to be hashed whenever they are opened."""
    monkeypatch.setattr(store_module, "HASHED_ON_OPENING", 0)
    place = make_rows(["abcdefgh"], 4).store.place / "00000-000.tokens"
    content = bytearray(place.read())
    content[7] ^= 1
    place.write(bytes(content))
    data = make_data(source=f"text:{tmp_path}/texts/*.txt")
    store = Stores(data, load_tokenizer("bytes")).open(data.sources[0])
    with pytest.raises(
        UserError, match=r"00000-000.tokens has been altered. Prepare the store again"
    ):
        PackedRows(store, 0, store.manifest.tokens, 4).pack(np.arange(2))
