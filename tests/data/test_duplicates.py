"""Documents that are in a source twice, or in a reference, are left out, whoever made the units."""

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jaxformer.config.data import DataConfig, DeduplicateConfig
from jaxformer.data import signatures
from jaxformer.data.long_text import LongText
from jaxformer.data.merging import merge
from jaxformer.data.plans import plan_of
from jaxformer.data.prepare import write_units
from jaxformer.data.signatures import Signer, bands_and_rows, first_of_each
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from tests.data.contents import mask_of, text_bytes_of
from tests.data.test_store import documents_of, open_store

MINHASH = {"kind": "minhash"}


def texts(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(900)]
    return [" ".join(random.choice(words, 60)) for _ in range(count)]


def nearly(text: str) -> str:
    """Two of sixty words are others: 46 of 56 shingles stay, and J = 46 / 66."""
    words = text.split()
    return " ".join([*words[:20], "other", *words[21:40], "words", *words[41:]])


@pytest.fixture
def make(make_data, tmp_path: Path):
    def data(rows: list[str], **options: object) -> DataConfig:
        lines = [json.dumps({"text": text}) + "\n" for text in rows]
        (tmp_path / "rows.jsonl").write_text("".join(lines))
        return make_data(source=f"jsonl:{tmp_path}/rows.jsonl", **options)

    return data


def test_the_first_of_equal_documents_stays(make, capfd) -> None:
    rows = texts(6, 0)
    data = make([*rows, rows[1], nearly(rows[2]), rows[0]], deduplicate={})
    assert documents_of(open_store(data)) == [*rows, nearly(rows[2])]
    assert "7 documents, 2 that are duplicates left out" in capfd.readouterr().err
    assert documents_of(open_store(make([*rows, rows[1]]))) == [*rows, rows[1]]


def test_nearly_equal_documents_are_found_by_minhash(make) -> None:
    rows = texts(40, 1)
    store = open_store(make([*rows, *map(nearly, rows[:20])], deduplicate={"kind": "minhash"}))
    found = documents_of(store)
    assert found[:40] == rows
    # 14 bands of 8 rows find a similarity of 46 / 66 with probability 0.54.
    assert 3 <= len(found) - 40 <= 17
    assert store.manifest.left_out == {"duplicate": 60 - len(found)}
    strict = make([*rows, *map(nearly, rows[:20])], deduplicate=MINHASH | {"threshold": 0.95})
    assert len(documents_of(open_store(strict))) > 57


def test_texts_of_a_reference_leave_training_and_stay_in_validation(make, tmp_path) -> None:
    rows, held = texts(8, 2), texts(3, 3)
    (tmp_path / "held.txt").write_text(held[1])
    reference = f"text:{tmp_path}/held.txt"
    data = make([*rows, *held], deduplicate={}, validation_source=reference)
    stores = Stores(data, load_tokenizer("bytes"))
    assert documents_of(stores.open(data.sources[0])) == [*rows, held[0], held[2]]
    assert documents_of(stores.open(data.held_out)) == [held[1]]
    other = make([*rows, *held], deduplicate={"against": reference})
    assert documents_of(open_store(other)) == [*rows, held[0], held[2]]
    with pytest.raises(UserError, match="all 1 documents are in data.deduplicate.against, too"):
        open_store(make([held[1]], deduplicate={"against": reference}))


def test_a_store_without_duplicates_is_the_same_from_any_units(make, tmp_path) -> None:
    rows = texts(60, 4)
    data = make([*rows, *rows[::3], *texts(20, 5), *rows[::2]], deduplicate=MINHASH)
    found = []
    for number, size in enumerate((3000, 1 << 28)):
        place = data.model_copy(update={"store_dir": str(tmp_path / f"{number}")})
        plan = plan_of(data.sources[0], place, load_tokenizer("bytes"), size)
        write_units(plan, range(len(plan.units))[::-1])
        found.append(merge(plan))
        assert not list(plan.recipe.place_of_units.files())
        assert documents_of(open_store(place)) == [*rows, *texts(20, 5)]
    assert len(found[0].shards) > 5
    assert (found[0].tokens, found[0].left_out) == (found[1].tokens, {"duplicate": 50})
    assert found[0].largest_id == 256


def test_masks_and_bytes_stay_with_their_documents(make_data, tmp_path) -> None:
    rows = [{"prompt": f"{n} ", "completion": "x" * (n % 7 + 1)} for n in range(20)]
    lines = [json.dumps(row) + "\n" for row in rows]
    keys = {"source": f"jsonl:{tmp_path}/a.jsonl", "format": "completion"}
    (tmp_path / "a.jsonl").write_text("".join([*lines, *lines[4:9]]))
    kept = open_store(make_data(**keys, deduplicate={}))
    (tmp_path / "a.jsonl").write_text("".join(lines))
    plain = open_store(make_data(**keys))
    assert documents_of(kept) == documents_of(plain)
    assert text_bytes_of(kept) == text_bytes_of(plain)
    np.testing.assert_array_equal(mask_of(kept), mask_of(plain))
    assert kept.manifest.learnt_tokens == plain.manifest.learnt_tokens


def test_many_documents_are_compared_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    tables = np.split(random.integers(0, 60, (100, 3)).astype(np.uint64), 4)
    known = np.array([[7, 8, 9]], np.uint64)
    seen = [{int(value)} for value in known[0]]
    expected = []
    for row in np.concatenate(tables).tolist():
        expected.append(not any(value in found for value, found in zip(row, seen, strict=True)))
        for value, found in zip(row, seen, strict=True):
            found.add(value)
    for at_once in (1 << 20, 7):
        monkeypatch.setattr(signatures, "HASHES_AT_ONCE", at_once)
        assert first_of_each(lambda: tables, known, 100).tolist() == expected


def test_bands_are_those_whose_threshold_is_nearest() -> None:
    assert bands_and_rows(0.72) == (14, 8)
    bands, rows = bands_and_rows(0.9)
    assert abs((1 / bands) ** (1 / rows) - 0.9) < 0.02


def test_a_long_text_has_the_signature_of_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(texts(1500, 6))
    for kind in ("exact", "minhash"):
        signer = Signer(DeduplicateConfig(kind=kind))
        whole = signer.sign(text)
        long = LongText(partial(io.BytesIO, text.encode()), "strict", "text")
        np.testing.assert_array_equal(signer.sign(long), whole)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'jaxformer.dedup.'"):
        Signer(DeduplicateConfig(kind="minhash"))


def test_texts_without_words_are_like_nothing_but_themselves(make) -> None:
    rows = ["!!! ???", "***", "→ ← ↑", "***", ""]
    assert documents_of(open_store(make(rows, deduplicate=MINHASH))) == rows[:3]


def test_a_merge_is_repeated_and_clears_away_what_an_earlier_one_left(make) -> None:
    data = make([*texts(9, 7), texts(1, 7)[0]], deduplicate={})
    plan = plan_of(data.sources[0], data, load_tokenizer("bytes"), 1000)
    write_units(plan, range(len(plan.units)))
    first = merge(plan)
    write_units(plan, [0])
    assert plan.recipe.place_of_units.files()
    assert merge(plan) == first
    assert not plan.recipe.place_of_units.files()


def test_the_reference_has_a_column_of_its_own(make_data, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n')
    data = make_data(
        source=[{"source": f"jsonl:{tmp_path}/a.jsonl", "column": "body"}],
        validation_source=f"jsonl:{tmp_path}/b.jsonl",
        deduplicate={},
    )
    assert documents_of(open_store(data)) == ["one"]
