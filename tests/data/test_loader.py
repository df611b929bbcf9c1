from collections import Counter
from itertools import islice

import grain
import numpy as np
import pytest

from jaxformer.batch import Batch
from jaxformer.data.loader import iterate, train_batches, validation_batches
from jaxformer.data.packing import PackedRows
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError

TOKENIZER = load_tokenizer("bytes")
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def prose(seed: int, documents: int, words: int = 30) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, words)) for _ in range(documents)]


def same(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def rows_of(batch: Batch) -> list[bytes]:
    return [row.tobytes() for row in np.concatenate([*batch], axis=1)]


@pytest.fixture
def data(make_data, write_texts):
    return make_data(source=write_texts(prose(0, 12)), sequence_length=16, validation_fraction=0.1)


@pytest.fixture
def mixed(make_data, write_texts):
    """Three sources that share no letter, of different sizes and weights."""
    sources = [
        {"source": write_texts([letter * 40] * count, letter), "weight": weight}
        for letter, count, weight in (("a", 10, 0.5), ("b", 40, 0.3), ("c", 3, 0.2))
    ]
    return make_data(source=sources, sequence_length=16, validation_fraction=0.0)


def test_a_batch_is_a_function_of_seed_and_step_alone(data) -> None:
    one, other = (train_batches(Stores(data, TOKENIZER), batch_size=4, seed=7) for _ in range(2))
    forward = [one[step] for step in range(50)]
    backward = [other[step] for step in reversed(range(50))]
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    different = train_batches(Stores(data, TOKENIZER), batch_size=4, seed=8)
    assert not any(same(different[step], forward[step]) for step in range(50))


def test_steps_far_beyond_32_bits_have_a_batch(data) -> None:
    batches = train_batches(Stores(data, TOKENIZER), batch_size=4, seed=7)
    assert batches[10**12].inputs.shape == (4, 16)
    assert same(batches[10**12], batches[10**12])


def test_a_batch_has_the_shapes_and_types_of_the_interface(mixed) -> None:
    batch = train_batches(Stores(mixed, TOKENIZER), batch_size=6, seed=0)[3]
    assert isinstance(batch, Batch)
    for name, array in batch._asdict().items():
        assert array.shape == (6, 16)
        assert array.dtype == (bool if name == "loss_mask" else np.int32)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_starting_at_a_step_equals_skipping_to_it(mixed, prefetch: int) -> None:
    batches = train_batches(Stores(mixed, TOKENIZER), batch_size=4, seed=1)
    from_start, from_seven = (iterate(batches, start, prefetch, threads=1) for start in (0, 7))
    skipped = list(islice(from_start, 12))[7:]
    assert all(same(a, next(from_seven)) for a in skipped)
    assert all(same(a, batches[7 + k]) for k, a in enumerate(skipped))
    from_start.close()
    from_seven.close()


def test_an_error_in_a_prefetched_batch_reaches_the_caller(data, monkeypatch) -> None:
    batches = train_batches(Stores(data, TOKENIZER), batch_size=4, seed=1)

    def fail(*_):
        raise UserError("damaged")

    monkeypatch.setattr(PackedRows, "pack", fail)
    with pytest.raises(UserError, match="damaged"):
        next(iterate(batches, 0, 2, threads=1))


@pytest.mark.parametrize("held", [[0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7], [2, 3, 6, 7], [5]])
def test_the_batch_does_not_depend_on_which_of_its_rows_a_process_holds(mixed, held) -> None:
    whole = train_batches(Stores(mixed, TOKENIZER), batch_size=8, seed=3)
    part = train_batches(Stores(mixed, TOKENIZER), batch_size=8, seed=3, held=np.array(held))
    for step in (0, 1, 2, 57, 1000):
        assert same(part[step], Batch(*(array[held] for array in whole[step])))
    assert same(next(iterate(part, 57, 0, threads=1)), part[57])


def test_an_epoch_has_every_row_once_and_the_next_another_order(data) -> None:
    stores = Stores(data, TOKENIZER)
    [part] = stores.training
    batches = train_batches(Stores(data, TOKENIZER), batch_size=1, seed=0)
    expected = Counter(rows_of(part.pack(np.arange(len(part)))))
    epochs = [
        [rows_of(batches[epoch * len(part) + row])[0] for row in range(len(part))]
        for epoch in range(3)
    ]
    for epoch in epochs:
        assert Counter(epoch) == expected
    in_order = rows_of(part.pack(np.arange(len(part))))
    assert len({tuple(order) for order in (*epochs, in_order)}) == 4


def test_every_token_of_an_epoch_is_a_target_once(data) -> None:
    [part] = Stores(data, TOKENIZER).training
    batches = train_batches(Stores(data, TOKENIZER), batch_size=1, seed=0)
    targets = np.concatenate([batches[row].targets for row in range(len(part))])
    real = np.concatenate([batches[row].segment_ids for row in range(len(part))]) > 0
    stream = part.store.tokens[1 : part.end]
    np.testing.assert_array_equal(np.sort(targets[real]), np.sort(stream))


def test_batches_cross_epochs_without_dropping_rows(data) -> None:
    [part] = Stores(data, TOKENIZER).training
    size = next(n for n in range(2, 9) if len(part) % n)
    batches = train_batches(Stores(data, TOKENIZER), batch_size=size, seed=0)
    one_by_one = train_batches(Stores(data, TOKENIZER), batch_size=1, seed=0)
    for step in range(2 * len(part) // size):
        singles = zip(*(one_by_one[step * size + row] for row in range(size)), strict=True)
        assert same(Batch(*(np.concatenate(arrays) for arrays in singles)), batches[step])


def test_neighbouring_seeds_share_no_epoch(data) -> None:
    [part] = Stores(data, TOKENIZER).training
    orders = set()
    for seed in range(3):
        batches = train_batches(Stores(data, TOKENIZER), batch_size=len(part), seed=seed)
        orders |= {tuple(rows_of(batches[epoch])) for epoch in range(3)}
    assert len(orders) == 9


def test_sources_have_the_shares_of_their_weights(mixed) -> None:
    batches = train_batches(Stores(mixed, TOKENIZER), batch_size=10, seed=0)
    letters = Counter()
    for step in range(300):
        inputs = batches[step].inputs
        letters.update(chr(row[row < 256][0]) for row in inputs)
    assert {letter: count / 3000 for letter, count in letters.items()} == pytest.approx(
        {"a": 0.5, "b": 0.3, "c": 0.2}, rel=0.01
    )


def test_a_small_source_of_a_mixture_repeats_whole_epochs(mixed) -> None:
    batches = train_batches(Stores(mixed, TOKENIZER), batch_size=10, seed=0)
    small = Stores(mixed, TOKENIZER).training[2]
    seen: list[bytes] = []
    for step in range(40):
        batch = batches[step]
        rows = rows_of(batch)
        seen += [rows[r] for r in range(10) if ord("c") in batch.inputs[r]]
    expected = Counter(rows_of(small.pack(np.arange(len(small)))))
    for epoch in range(len(seen) // len(small)):
        assert Counter(seen[epoch * len(small) : (epoch + 1) * len(small)]) == expected


def test_one_document_is_divided_exactly(make_data, write_texts) -> None:
    text = prose(0, 1, 200)[0]
    data = make_data(source=write_texts([text]), sequence_length=16, validation_fraction=0.1)
    stores = Stores(data, TOKENIZER)
    [train], [validation] = stores.training, stores.validation
    assert train.end == validation.begin == int(0.9 * (len(text) + 2))
    assert validation.end == len(text) + 2


def test_validation_is_the_held_out_text_once_in_order(data) -> None:
    batches = validation_batches(Stores(data, TOKENIZER), batch_size=3)
    [part] = Stores(data, TOKENIZER).validation
    targets = np.concatenate([batch.targets[batch.segment_ids > 0] for batch in batches])
    np.testing.assert_array_equal(targets, part.store.tokens[part.begin + 1 : part.end])
    assert len(batches) == -(-len(part) // 3)
    assert all(batch.inputs.shape == (3, 16) for batch in batches)
    assert batches.loss_tokens == sum(int(batch.loss_mask.sum()) for batch in batches)
    with pytest.raises(IndexError, match=f"batch {len(batches)} of {len(batches)}"):
        batches[len(batches)]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_validation_is_the_same_text_for_any_batch_size_and_any_rows_held(
    make_data, write_texts, batch_size: int
) -> None:
    sources = [{"source": write_texts(prose(n, 9), str(n))} for n in range(3)]
    data = make_data(source=sources, sequence_length=16, validation_fraction=0.2)
    reference = validation_batches(Stores(data, TOKENIZER), batch_size=1)
    expected = [row for batch in reference for row in rows_of(batch)]
    hosts = 2 if batch_size % 2 == 0 else 1
    parts = [
        validation_batches(Stores(data, TOKENIZER), batch_size=batch_size, held=held)
        for held in np.split(np.arange(batch_size), hosts)
    ]
    rows = [row for step in range(len(parts[0])) for part in parts for row in rows_of(part[step])]
    padding = bytes(len(rows[0]))
    assert rows == expected + [padding] * (len(rows) - len(expected))
    assert len(rows) - len(expected) < batch_size
    assert parts[0].bytes_per_token == reference.bytes_per_token


def test_bytes_per_token_counts_the_text_of_the_targets(make_data, write_texts, bpe) -> None:
    texts = [text + " ü" for text in prose(0, 12)]
    source = write_texts(texts)
    for tokenizer, at_least in ((TOKENIZER, 0.95), (bpe, 1.0)):
        data = make_data(source=source, sequence_length=16, validation_fraction=0.15)
        batches = validation_batches(Stores(data, tokenizer), batch_size=2)
        counted = sum(tokenizer.count_bytes(batch.targets[batch.loss_mask]) for batch in batches)
        assert batches.text_bytes == pytest.approx(counted, abs=1)
        assert batches.bytes_per_token == batches.text_bytes / batches.loss_tokens > at_least


def test_validation_source_is_taken_whole_and_training_keeps_all_its_text(
    make_data, write_texts
) -> None:
    train, held_out = write_texts(prose(0, 5), "train"), write_texts(prose(1, 2), "held_out")
    data = make_data(source=train, validation_source=held_out, sequence_length=16)
    stores = Stores(data, TOKENIZER)
    assert stores.training[0].end == stores.training[0].store.manifest.tokens
    [validation] = stores.validation
    assert (validation.begin, validation.end) == (0, validation.store.manifest.tokens)
    batches = validation_batches(Stores(data, TOKENIZER), batch_size=2)
    assert batches.text_bytes == sum(len(text) for text in prose(1, 2))
    assert batches.bytes_per_token == pytest.approx(1.0, abs=0.02)


def test_nothing_held_out_gives_no_validation(mixed) -> None:
    batches = validation_batches(Stores(mixed, TOKENIZER), batch_size=4)
    assert len(batches) == 0
    assert list(batches) == []


def test_validation_without_a_token_to_predict_is_refused(make_data, write_texts) -> None:
    data = make_data(
        source=write_texts(prose(0, 1)), sequence_length=16, validation_fraction=0.0001
    )
    with pytest.raises(UserError, match=r"the validation part holds 1 tokens, none to predict; r"):
        validation_batches(Stores(data, TOKENIZER), batch_size=1)


def test_a_source_shorter_than_a_row_is_refused(make_data, write_texts) -> None:
    data = make_data(source=write_texts(["short"]), sequence_length=64)
    message = r"6 tokens to train on are fewer than one row of data.sequence_length 64 and the tok"
    with pytest.raises(UserError, match=message):
        train_batches(Stores(data, TOKENIZER), batch_size=1, seed=0)


def test_validation_by_its_own_source_needs_no_training_source(make_data, write_texts) -> None:
    data = make_data(
        source="text:/not/on/this/machine.txt",
        validation_source=write_texts(prose(0, 2)),
        sequence_length=16,
    )
    assert validation_batches(Stores(data, TOKENIZER), batch_size=2).text_bytes > 0
    with pytest.raises(UserError, match="no such file"):
        train_batches(Stores(data, TOKENIZER), batch_size=2, seed=0)


def test_the_manifest_of_the_data_is_of_its_content(mixed, make_data, write_texts) -> None:
    manifest = Stores(mixed, TOKENIZER).manifest()
    assert [(row["split"], row["weight"]) for row in manifest] == [
        ("train", 0.5),
        ("train", 0.3),
        ("train", 0.2),
    ]
    assert len({row["sha256"] for row in manifest}) == 3
    elsewhere = make_data(
        source=write_texts(["a" * 40] * 10, "elsewhere"),
        sequence_length=16,
        validation_fraction=0.0,
    )
    [row] = Stores(elsewhere, TOKENIZER).manifest()
    assert {key: row[key] for key in ("sha256", "tokens", "rows")} == {
        key: manifest[0][key] for key in ("sha256", "tokens", "rows")
    }


def test_train_batches_is_a_grain_dataset_without_end(data) -> None:
    batches = train_batches(Stores(data, TOKENIZER), batch_size=4, seed=0)
    assert isinstance(batches, grain.MapDataset)
    assert len(batches) > 2**60
