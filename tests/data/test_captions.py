"""Pictures with a text each, from files to batches."""

from pathlib import Path

import numpy as np
import pytest

from jaxformer.config import DataConfig
from jaxformer.data.loader import train_batches, validation_batches
from jaxformer.data.stores import Stores
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.errors import UserError
from tests.data.pictures import encoded, pixels, write_parquet

TEXTS = ["a", "bc", "def", "a longer text", "", "ü"]
LENGTH = 6  # of rows: a beginning, four bytes and an end


def data_of(folder: Path, **images: object) -> DataConfig:
    contents = [encoded(pixels(number)) for number in range(len(TEXTS))]
    source = write_parquet(folder / "pictures.parquet", contents, TEXTS, None, ("image", "caption"))
    section = {"size": [8, 8], "text": "caption", **images}
    return DataConfig.model_validate(
        {
            "kind": "images",
            "source": source,
            "images": section,
            "tokenizer": "bytes",
            "sequence_length": LENGTH,
            "validation_fraction": 0.34,  # two of six
            "cache_dir": str(folder / "cache"),
        }
    )


def test_rows_are_pictures_with_texts_that_are_cut_or_filled_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = data_of(tmp_path)
    tokenizer = tokenizer_of(data)
    stores = Stores(data, tokenizer)
    [training] = stores.training
    [validation] = stores.validation
    # 13 bytes between the beginning and the end.
    said = capsys.readouterr().err
    assert "texts to data.sequence_length 6; the longest has 15 tokens" in said
    chosen = np.concatenate([training.chosen, validation.chosen])
    assert sorted(chosen) == list(range(len(TEXTS)))

    batches = validation_batches(stores, batch_size=3)
    assert batches.loss_tokens == 2
    batch = batches[0]
    spec = data.spec(3)
    for name in ("targets", "positions", "segment_ids", "loss_mask"):
        array, wanted = getattr(batch, name), getattr(spec, name)
        assert (array.shape, array.dtype) == (wanted.shape, wanted.dtype)
    assert batch.inputs.source.inputs.shape == spec.inputs.source.inputs.shape
    np.testing.assert_array_equal(batch.loss_mask[:, 0], [True, True, False])
    for row, place in enumerate(validation.chosen):
        ids = [*tokenizer.prefix_ids, *TEXTS[place].encode()]
        ids = [*ids[: LENGTH - 1], tokenizer.eos_id]
        np.testing.assert_array_equal(batch.inputs.source.inputs[row], pixels(int(place)))
        np.testing.assert_array_equal(batch.inputs.tokens[row, : len(ids)], ids)
        np.testing.assert_array_equal(batch.segment_ids[row], np.arange(LENGTH) < len(ids))

    first = train_batches(stores, batch_size=4, seed=0)[0]
    assert {picture.tobytes() for picture in first.inputs.source.inputs} == {
        pixels(int(place)).tobytes() for place in training.chosen
    }


def test_texts_that_are_filled_up_have_tokens_everywhere(tmp_path: Path):
    data = data_of(tmp_path, fill=7)
    batch = validation_batches(Stores(data, tokenizer_of(data)), batch_size=2)[0]
    assert (batch.segment_ids == 1).all()
    np.testing.assert_array_equal(batch.positions, [np.arange(LENGTH)] * 2)
    plain = data_of(tmp_path)
    padded = validation_batches(Stores(plain, tokenizer_of(plain)), batch_size=2)[0]
    behind = padded.segment_ids == 0
    assert behind.any() and (batch.inputs.tokens[behind] == 7).all()
    np.testing.assert_array_equal(np.where(behind, 0, batch.inputs.tokens), padded.inputs.tokens)

    data = data_of(tmp_path, fill=1000)
    with pytest.raises(UserError, match="fill is 1000, and data.tokenizer 'bytes' has ids below"):
        _ = Stores(data, tokenizer_of(data)).training
