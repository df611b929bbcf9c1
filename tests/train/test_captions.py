"""Runs that learn which texts and pictures belong together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxformer.cli import main
from jaxformer.config import Config
from jaxformer.train.metrics import read_rows
from jaxformer.train.run import train
from tests.data.pictures import encoded, write_parquet
from tests.objectives.contrastive import MODEL, OUTPUTS

COLOURS = ["black", "white", "red", "lime", "blue", "cyan", "sand", "sky"]


def picture(number: int) -> np.ndarray:
    """A plain colour, which no other number has."""
    return np.full((4, 4, 1), 32 * number + 16, np.uint8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    folder = tmp_path_factory.mktemp("captions")
    contents = [encoded(picture(number)) for number in range(len(COLOURS))]
    source = write_parquet(folder / "a.parquet", contents, COLOURS, None, ("image", "caption"))
    config = Config.model_validate(
        {
            "model": MODEL
            | {
                "vocab_size": None,
                "positions": {"kind": "learned", "max_length": 8},
                "outputs": OUTPUTS | {"scale": 10.0, "bias": None},
            },
            "data": {
                "kind": "images",
                "source": source,
                "validation_source": source,
                "images": {"size": [4, 4], "channels": 1, "text": "caption"},
                "tokenizer": "bytes",
                "sequence_length": 8,
                "cache_dir": str(folder / "cache"),
            },
            "train": {
                "steps": 80,
                "batch_size": 8,
                "objective": {"kind": "contrastive", "form": "softmax", "most_scale": 100.0},
            },
            "optimizer": {"kind": "adamw", "learning_rate": 0.01, "weight_decay": 0.0},
            "eval": {"every": 80},
            "checkpoint": {"every": 80},
            "run": {"dir": str(folder / "run")},
        }
    )
    assert train(config) == 0
    return folder, config


def test_a_run_learns_which_texts_and_pictures_belong_together(
    finished: tuple[Path, Config], capsys: pytest.CaptureFixture[str]
) -> None:
    _, config = finished
    rows = read_rows(Path(config.run.dir) / "metrics.jsonl")
    assert rows[0]["loss"] > 1.5  # log 8 = 2.1, where nothing is known
    assert next(row["loss"] for row in reversed(rows) if "loss" in row) < 0.1
    assert all(row["scale"] > 1 for row in rows if "scale" in row)
    assert main(["eval", config.run.dir, "eval.batch_size=3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pairs"] == 8
    assert report["text_to_picture_recall_at_1"] == report["picture_to_text_recall_at_1"] == 1.0
    assert main(["eval", config.run.dir]) == 0
    assert "8 pairs" in capsys.readouterr().out


def test_a_picture_is_classified_by_texts(
    finished: tuple[Path, Config], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = finished
    file = folder / "one.png"
    file.write_bytes(encoded(picture(COLOURS.index("sky"))))
    texts = ["--text", "and", "--text", "ky"]
    command = ["predict", config.run.dir, str(file), *texts, "--template", "s{}", "--top", "1"]
    shutil.rmtree(folder / "cache")  # a run needs no store to be used
    assert main([*command, "--json"]) == 0
    [said] = json.loads(capsys.readouterr().out)
    assert list(said["classes"]) == ["ky"] and said["classes"]["ky"] > 0.5
    assert main(["predict", config.run.dir, str(file)]) == 2
    assert "which compares pictures with texts; give --text" in capsys.readouterr().err
