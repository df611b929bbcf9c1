"""A run on recordings whose texts a decoder writes, from training to transcripts."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from jaxformer.cli import main
from jaxformer.config import Config
from jaxformer.data.stores import Stores
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.train.run import train
from tests.data.recordings import LETTERS, MODEL, encoded, spoken, write_parquet

TEXTS = [*LETTERS, "ab", "ba", "ca", "cb", "abc"]
ENCODER = {key: value for key, value in MODEL.items() if key != "tie_embeddings"}
START = len(LETTERS) + 1  # the end of text


def config_of(folder: Path) -> dict:
    source = f"parquet:{folder / 'spoken.parquet'}"
    return {
        "model": {
            "d_model": 32,
            "num_layers": 2,
            "mixer": {"kind": "attention", "num_heads": 2},
            "ffn": {"kind": "gelu", "d_hidden": 64},
            "pattern": [{"ffn": "none"}, {"mixer": {"kind": "cross_attention", "num_heads": 2}}],
            "encoder": ENCODER | {"d_model": 32, "length": 14},
        },
        "data": {
            "kind": "audio",
            "source": source,
            "validation_source": source,
            "tokenizer": "characters",
            "audio": {
                "sample_rate": 800,
                "samples_per_place": 16,
                "text": "text",
                "source_length": 14,
            },
            "sequence_length": 5,
            "cache_dir": str(folder / "cache"),
        },
        "train": {"steps": 200, "batch_size": 8},
        "optimizer": {
            "kind": "adamw",
            "learning_rate": 0.01,
            "schedule": {"kind": "cosine", "warmup_steps": 10},
        },
        "eval": {"every": 200, "batches": None},
        "checkpoint": {"every": 200},
        "run": {"dir": str(folder / "run")},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spoken")
    files = [encoded(spoken(text)) for text in TEXTS]
    write_parquet(folder / "spoken.parquet", files, TEXTS)
    for text, file in zip(TEXTS, files, strict=True):
        (folder / f"{text}.wav").write_bytes(file)
    return folder


@pytest.fixture(scope="module")
def listener(folder: Path) -> Path:
    """Learns eight recordings by heart."""
    assert train(Config.model_validate(config_of(folder))) == 0
    return folder / "run"


def refusal(folder: Path, **audio: object) -> str:
    config = config_of(folder)
    config["data"]["audio"] |= audio
    with pytest.raises(ValidationError) as error:
        Config.model_validate(config)
    return str(error.value)


def test_a_row_is_a_recording_and_its_text(folder: Path) -> None:
    data = Config.model_validate(config_of(folder)).data
    [rows] = Stores(data, tokenizer_of(data)).training
    batch = rows.pack(np.array([len(TEXTS) - 1, 0]))
    assert batch.inputs.tokens.tolist() == [[START, 0, 1, 2, 0], [START, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[0, 1, 2, START, 0], [0, START, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0], [0, 1, 0, 0, 0]]
    assert np.array_equal(batch.loss_mask, batch.segment_ids == 1)
    source = batch.inputs.source
    assert source.inputs.shape == (2, 14 * 16) and source.inputs.dtype == np.int16
    assert source.segment_ids.sum(axis=1).tolist() == [12, 4]
    shapes = [leaf.shape for leaf in (*data.spec(2).inputs.source, data.spec(2).targets)]
    assert shapes == [(2, 14 * 16), (2, 14), (2, 14), (2, 5)]


def test_a_longer_start_is_read_and_not_learned(folder: Path) -> None:
    config = config_of(folder)
    config["data"]["audio"]["start"], config["data"]["sequence_length"] = [1, 2], 6
    data = Config.model_validate(config).data
    tokenizer = tokenizer_of(data)
    [rows] = Stores(data, tokenizer).training
    batch = rows.pack(np.array([len(TEXTS) - 1]))
    assert batch.inputs.tokens.tolist() == [[1, 2, 0, 1, 2, 0]]
    assert batch.targets.tolist() == [[2, 0, 1, 2, START, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 1, 1, 0]]
    assert batch.loss_mask.tolist() == [[False, True, True, True, True, False]]
    letters = sum(map(len, TEXTS))
    assert (rows.loss_tokens(), rows.text_bytes(tokenizer)) == (letters + len(TEXTS), letters)


def test_recordings_that_were_learned_are_written_down(listener: Path, capsys) -> None:
    files = [str(listener.parent / f"{text}.wav") for text in TEXTS]
    assert main(["predict", str(listener), *files]) == 0
    lines = [f"{file}: {text}" for file, text in zip(files, TEXTS, strict=True)]
    assert capsys.readouterr().out.splitlines() == lines
    assert main(["eval", str(listener), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["recordings"], report["characters"]) == (8, 14)
    assert (report["character_error_rate"], report["word_error_rate"]) == (0, 0)
    sample = (listener / "samples.txt").read_text().splitlines()
    assert sample[1:] == [f"{n}  said: {t}; heard: {t}" for n, t in enumerate(TEXTS, start=1)]


def test_what_does_not_fit_a_decoder_is_refused(folder: Path) -> None:
    assert "data.audio.source_length is null; give data.audio.source_length=14" in refusal(
        folder, source_length=None
    )
    assert "model.encoder.length is 14, but rows of data.audio have 12 places" in refusal(
        folder, source_length=12
    )
    assert "leave max_labels 3 out, or source_length" in refusal(folder, max_labels=3)
    assert "leave pack true out, or source_length" in refusal(folder, pack=True)
