"""Synthetic tasks as a run's data."""

import numpy as np
import pytest

from jaxformer.config import DataConfig
from jaxformer.data.loader import train_batches, validation_batches
from jaxformer.data.stores import Stores
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError

MQAR = {"kind": "mqar", "vocab_size": 32, "num_pairs": 4}


def make_data(**options):
    base = {"task": MQAR, "tokenizer": "ids:32", "sequence_length": 24}
    return DataConfig.model_validate(base | options)


def test_batches_of_a_task_are_a_function_of_seed_and_step():
    data, tokenizer = make_data(), load_tokenizer("ids:32")
    one, two, other = (
        train_batches(Stores(data, tokenizer), batch_size=3, seed=seed)[7] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.inputs, two.inputs)
    assert (one.inputs != other.inputs).any()
    assert one.loss_mask.sum(axis=1).tolist() == [4, 4, 4]


def test_validation_rows_are_the_same_for_any_batch_size():
    data, tokenizer = make_data(), load_tokenizer("ids:32")
    ones, threes = (validation_batches(Stores(data, tokenizer), batch_size=size) for size in (1, 3))
    assert len(ones) == 1024 and ones.loss_tokens == 4096
    np.testing.assert_array_equal(threes[1].inputs[2], ones[5].inputs[0])


def test_a_task_is_told_apart_in_the_manifest():
    tokenizer = load_tokenizer("ids:32")
    easy, hard = (
        Stores(make_data(task=MQAR | {"num_pairs": pairs}), tokenizer).manifest()
        for pairs in (4, 5)
    )
    assert easy[0]["source"] == "task:mqar"
    assert easy[0]["sha256"] != hard[0]["sha256"]


def test_a_task_with_more_ids_than_the_tokenizer_is_refused():
    data = make_data(tokenizer="ids:8")
    with pytest.raises(UserError, match=r"mqar needs 32 ids, and data.tokenizer 'ids:8' has 8"):
        assert Stores(data, load_tokenizer("ids:8")).training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 12}, "num_pairs 4 needs rows of 16 or more, sequence_length is 12"),
        ({"task": MQAR | {"num_pairs": 20}, "sequence_length": 99}, "vocab_size 32 has 15"),
        ({"task": {"kind": "selective_copy"}}, "num_tokens 16 needs rows of 32 or more"),
    ],
)
def test_a_task_that_does_not_fit_its_rows_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_data(**options)


def test_a_needle_lies_in_the_text_of_the_source(tmp_path):
    (tmp_path / "text.txt").write_text("all the words of a long story " * 200)
    data = make_data(
        task={"kind": "needle"},
        source=f"text:{tmp_path}/text.txt",
        tokenizer="bytes",
        sequence_length=200,
        cache_dir=str(tmp_path / "cache"),
    )
    tokenizer = load_tokenizer("bytes")
    batch = train_batches(Stores(data, tokenizer), batch_size=2, seed=0)[0]
    assert "The secret number of the" in tokenizer.decode(batch.inputs[1])
    assert batch.loss_mask.sum() == 12
    with pytest.raises(UserError, match="needle: the needle and its question take"):
        assert Stores(data.model_copy(update={"sequence_length": 60}), tokenizer).training


def test_ids_are_written_as_numbers():
    tokenizer = load_tokenizer("ids:16")
    assert tokenizer.decode(tokenizer.encode("3 0 15")) == "3 0 15"
    stream = tokenizer.stream_decoder()
    assert stream.push(3) + stream.push(0) + stream.finish() == "3 0"
    with pytest.raises(UserError, match="'16' is not a token of ids:16; allowed: numbers"):
        tokenizer.encode("3 16")
