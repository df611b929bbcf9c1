"""Pairs of texts as batches: what an encoder reads, what a decoder reads, what it is to write."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxformer.batch import Batch
from jaxformer.config import Config, DataConfig
from jaxformer.data import commands
from jaxformer.data.loader import iterate, train_batches, validation_batches
from jaxformer.data.pair_texts import validation_texts
from jaxformer.data.pairs import ROWS_OPEN, PairRows, rows_of
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError

TOKENIZER = load_tokenizer("bytes")
END = 256  # also stands before a source, and is what the decoder starts with
PAIRS = [("ab", "ÄB"), ("c", "d"), ("e f", ""), (" ", "g"), ("hello", "h"), ("i", "j k l")]
# Of all lengths that fit into rows of 12 and 8 tokens, none of them twice.
MANY = [(f"{n:02}" + "x" * (n % 9), "abcdefghij"[n % 10] * (1 + n % 7)) for n in range(60)]
COLUMNS = {"source": "en", "target": "de", "source_length": 12}


def write(file: Path, pairs: Sequence[tuple[object, object]]) -> str:
    rows = [json.dumps({"en": source, "de": target}) for source, target in pairs]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return f"jsonl:{file}"


@pytest.fixture
def make(make_data, tmp_path: Path) -> Callable[..., DataConfig]:
    """Data of these pairs, in rows of 12 and 8 tokens; `pairs` adds keys of its section."""

    def data(rows: Sequence, pairs: dict[str, object] | None = None, **options: object):
        source = write(tmp_path / "rows.jsonl", rows)
        given = {"kind": "pairs", "source": source, "pairs": COLUMNS | (pairs or {})}
        return make_data(**(given | {"sequence_length": 8, "validation_fraction": 0.0} | options))

    return data


def training(data: DataConfig) -> PairRows:
    [part] = Stores(data, TOKENIZER).training
    assert isinstance(part, PairRows)
    return part


def same(one: Batch, other: Batch) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def pairs_of(batches: Sequence[Batch]) -> list[tuple[str, str]]:
    """The texts of batches, of tokens that are checked to be where they belong."""
    found = []
    for (tokens, source), targets, positions, segment_ids, loss_mask in batches:
        assert np.array_equal(loss_mask, segment_ids != 0)
        assert not (tokens[~loss_mask].any() or targets[~loss_mask].any())
        for row, last_number in enumerate(segment_ids.max(axis=1)):
            for number in range(1, last_number + 1):
                read, written = source.segment_ids[row] == number, segment_ids[row] == number
                assert source.positions[row, read].tolist() == [*range(read.sum())]
                assert positions[row, written].tolist() == [*range(written.sum())]
                begin, *text, end = source.inputs[row, read]
                *target, last = targets[row, written]
                assert begin == end == last == END
                assert tokens[row, written].tolist() == [END, *target]
                found.append((bytes(text).decode(), bytes(target).decode()))
    return found


def test_a_row_holds_pairs_whose_sides_have_the_same_numbers(make) -> None:
    part = training(make(PAIRS))
    batch = part.pack(np.arange(2))
    # Sources take 4, 3, 7 and 3 tokens of 12, targets 4, 2, 2 and 6 of 8.
    assert batch.inputs.source.inputs.tolist() == [
        [END, *b"ab", END, END, *b"c", END, *[0] * 5],
        [END, *b"hello", END, END, *b"i", END, 0, 0],
    ]
    assert batch.inputs.source.segment_ids.tolist() == [
        [1] * 4 + [2] * 3 + [0] * 5,
        [1] * 7 + [2] * 3 + [0] * 2,
    ]
    assert batch.inputs.source.positions[1].tolist() == [*range(7), *range(3), 0, 0]
    assert batch.inputs.tokens.tolist() == [
        [END, *"ÄB".encode(), END, *b"d", 0, 0],
        [END, *b"h", END, *b"j k l"],
    ]
    assert batch.targets.tolist() == [
        [*"ÄB".encode(), END, *b"d", END, 0, 0],
        [*b"h", END, *b"j k l", END],
    ]
    assert batch.segment_ids.tolist() == [[1] * 4 + [2] * 2 + [0] * 2, [1] * 2 + [2] * 6]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 0, 0], [0, 1, 0, 1, 2, 3, 4, 5]]
    assert np.array_equal(batch.loss_mask, batch.segment_ids != 0)
    assert part.store.manifest.left_out == {"empty": 2}
    assert (len(part), part.tokens, part.loss_tokens()) == (2, 16, 14)
    assert part.text_bytes(TOKENIZER) == 3 + 1 + 1 + 5
    # Of 24 tokens, sources take 17; of 16, targets 14.
    assert part.words == "4 pairs in 2 rows (padding: 29.2% of sources, 12.5% of targets)"


def test_the_decoder_starts_with_the_token_that_is_asked_for(make) -> None:
    batch = training(make([("a", "b"), ("c", "d")], {"start": 0})).pack(np.arange(1))
    assert batch.inputs.tokens.tolist() == [[0, *b"b", 0, *b"d", 0, 0, 0, 0]]
    with pytest.raises(UserError, match=r"data.pairs.start is 257, and .* 'bytes' has ids below 2"):
        training(make([("a", "b")], {"start": 257}))


def test_pairs_go_into_the_first_of_the_newest_rows_that_has_room() -> None:
    # Row 0 has no room for the second source, nor for the third target; row 1 has.
    sizes = np.array([(3, 3), (3, 1), (1, 3), (2, 1), (2, 2)])
    assert rows_of(sizes, (5, 4)).tolist() == [0, 1, 1, 0, 2]
    full = [(5, 1)] * ROWS_OPEN
    assert rows_of(np.array([(4, 1), *full[1:], (1, 1)]), (5, 4))[-1] == 0
    assert rows_of(np.array([(4, 1), *full, (1, 1)]), (5, 4))[-1] == ROWS_OPEN + 1
    sizes = np.random.default_rng(0).integers(1, 9, (400, 2))
    rows = rows_of(sizes, (10, 8))
    for side, most in enumerate((10, 8)):
        held = np.bincount(rows, sizes[:, side])
        assert held.min() > 0 and held.max() <= most


def test_an_epoch_has_every_pair_once_and_validation_the_others(make) -> None:
    stores = Stores(data := make(MANY, validation_fraction=0.2), TOKENIZER)
    batches = train_batches(stores, batch_size=1, seed=0)
    rows = len(stores.training[0])
    epoch = pairs_of([batches[row] for row in range(rows)])
    held_out = pairs_of(validation := validation_batches(stores, batch_size=3))
    assert len(held_out) == 12
    assert Counter(epoch + held_out) == Counter(MANY)
    assert Counter(held_out) == Counter(validation_texts(data))
    assert validation.text_bytes == sum(len(target) for _, target in held_out)
    assert validation.loss_tokens == validation.text_bytes + 12
    assert epoch != pairs_of([batches[rows + row] for row in range(rows)])


def test_a_batch_is_a_function_of_seed_and_step_alone_on_any_number_of_hosts(
    make, tmp_path
) -> None:
    """Two sources, whose rows are merged; the second has one row, and so has validation."""
    other = write(tmp_path / "other.jsonl", [("n", "o")])
    data = make(MANY)
    sources = [{"source": data.source, "weight": 3}, {"source": other, "weight": 1}]
    data = make(MANY, source=sources, validation_source=other)
    one, again = (train_batches(Stores(data, TOKENIZER), batch_size=4, seed=7) for _ in range(2))
    whole = [one[step] for step in range(12)]
    assert all(same(again[step], whole[step]) for step in reversed(range(12)))
    resumed = iterate(again, 7, 2, threads=1)
    assert all(same(next(resumed), batch) for batch in whole[7:])
    assert Counter(pairs_of(whole))["n", "o"] == 12
    held = train_batches(Stores(data, TOKENIZER), batch_size=4, seed=7, held=np.array([1, 3]))
    assert same(held[5], jax.tree.map(lambda array: array[[1, 3]], whole[5]))
    [validation] = validation_batches(Stores(data, TOKENIZER), batch_size=4)
    assert pairs_of([validation]) == [("n", "o")]
    for batch in (whole[0], validation):
        described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        assert described == data.spec(4) == data.of_shapes.spec(4)


def test_pairs_that_are_too_long_are_refused_or_left_out(make, capfd) -> None:
    pairs = [("a", "b"), ("x" * 11, "c"), ("d", "y" * 8), ("e", "z" * 7)]
    message = (
        r"rows.jsonl' has 2 of 4 pairs, which are too long; the first, number 2, has a source of "
        r"13 tokens and a target of 2, and rows hold 12 and 8. Give data.pairs.source_length=13 "
        r"and data.sequence_length=9, or leave such pairs out with data.pairs.too_long=skip"
    )
    for split in ("training", "validation"):
        data = make(pairs, validation_source=make(pairs).source)
        with pytest.raises(UserError, match=message):
            getattr(Stores(data, TOKENIZER), split)
    data = make(pairs, {"too_long": "skip"}, validation_source=data.source)
    capfd.readouterr()
    stores = Stores(data, TOKENIZER)
    for split in ("training", "validation"):
        [part] = getattr(stores, split)
        assert pairs_of([part.pack(np.arange(len(part)))]) == [("a", "b"), ("e", "z" * 7)]
        assert "rows.jsonl: left out 2 of 4 pairs, which are too long" in capfd.readouterr().err
    assert len(validation_texts(data)) == 4


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"en": "a"}, r"no column 'de'; columns: en. Set data.pairs.target to one of them"),
        ({"en": {"de": "x"}, "de": "b"}, "column 'en' is an object, not text; .*bad_rows=skip"),
        ({"en": "a", "de": None}, "column 'de' is null, not text; .*missing_text=skip"),
    ],
)
def test_a_row_that_is_no_pair_is_named(make, tmp_path, pair: dict, message: str) -> None:
    data = make([("a", "b")])
    (tmp_path / "rows.jsonl").write_text(json.dumps(pair))
    with pytest.raises(UserError, match=rf"rows.jsonl, line 1: {message}"):
        Stores(data, TOKENIZER).open(data.sources[0])


def test_columns_may_be_fields_and_duplicates_be_left_out(make, tmp_path) -> None:
    """In a table as `datasets` has translations."""
    rows = [{"translation": {"en": f"a{n // 2}", "de": f"b{n // 2}"}} for n in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    columns = {"source": "translation.en", "target": "translation.de"}
    source = f"parquet:{tmp_path}/rows.parquet"
    data = make([], columns, source=source, deduplicate={"kind": "exact"})
    part = training(data)
    assert pairs_of([part.pack(np.arange(len(part)))]) == [("a0", "b0"), ("a1", "b1"), ("a2", "b2")]
    assert part.store.manifest.left_out == {"duplicate": 3}


def test_a_prepared_store_must_hold_these_pairs(make, tmp_path) -> None:
    data = make(PAIRS)
    store = f"store:{training(data).store.place}"
    prepared = data.model_copy(update={"source": store})
    assert training(prepared).manifest() == training(data).manifest()
    with pytest.raises(UserError, match="holds tokens, and translations are compared with texts"):
        validation_texts(make(PAIRS, validation_source=store))
    with pytest.raises(UserError, match=r"of the columns en and de, and .* target are de and en"):
        training(make(PAIRS, {"source": "de", "target": "en"}, source=store))
    text = DataConfig(source=data.source, column="en", cache_dir=data.cache_dir)
    store = f"store:{Stores(text, TOKENIZER).open(text.sources[0]).place}"
    with pytest.raises(UserError, match="holds no pairs of texts; prepare them with data.kind"):
        training(make(PAIRS, source=store))


def test_commands_prepare_inspect_and_train_a_tokenizer_on_both_sides(
    make, tmp_path, capfd, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    one_head = {"kind": "attention", "num_heads": 1}
    model = {"d_model": 8, "num_layers": 1, "mixer": one_head, "ffn": None}
    reading = {"mixer": {"kind": "cross_attention"}, "encoder": model | {"length": 12}}
    config = Config(model=model | reading, data=make(PAIRS))
    commands.prepare(config)
    err = capfd.readouterr().err
    assert ": 4 pairs, 2 with an empty side left out, 31 tokens (45.2% in the loss)" in err
    assert "4 pairs in 2 rows (padding: 29.2% of sources, 12.5% of targets) to train on" in err
    commands.inspect(config)
    out = capfd.readouterr().out
    for line in (
        "│ pairs            │ 4 ",
        "│ left out         │ 2 with an empty side ",
        "│ bytes of targets │ 10 ",
        "  | <|endoftext|>ab<|endoftext|>⟦ÄB<|endoftext|>⟧",
    ):
        assert line in out
    commands.train_tokenizer(config.data, tmp_path / "tokenizer", 258)
    assert "tokenizer of 258 ids" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": None}, r"pairs is missing, but kind is pairs; give at least pairs: \{source: C"),
        ({"kind": "text"}, "pairs is given, but kind is text; give kind: pairs"),
        ({"format": "completion"}, "format is completion, but kind is pairs, and only text has it"),
        ({"tokenizer": "characters"}, "tokenizer is characters, but kind is pairs"),
        ({"source": "text:a.txt"}, "source 'text:a.txt': kind is pairs; allowed: jsonl:GLOB"),
        ({"pairs": {"source": "en", "target": "en"}}, "source and target are both en"),
    ],
)
def test_a_section_that_is_none_of_pairs_is_refused(make, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(PAIRS).model_validate(make(PAIRS).model_dump() | options)
