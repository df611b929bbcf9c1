"""Runs that are trained on recordings."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from pydantic import ValidationError

from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.cli import main
from jaxformer.config import Config
from jaxformer.data.stores import Part, Stores
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.evaluate.by_position import measure_on
from jaxformer.evaluate.samples import samples_of
from jaxformer.run import load
from jaxformer.train.metrics import read_rows
from jaxformer.train.run import train
from tests.data.recordings import LETTERS, MODEL, encoded, spoken, write_parquet, write_spoken
from tests.runs import assert_a_stopped_run_is_the_whole


def make_config(folder: Path, run: str, **audio: Any) -> Config:
    return Config.model_validate(
        {
            "model": MODEL,
            "data": {
                "kind": "audio",
                "source": write_spoken(folder, 16),
                "tokenizer": "characters",
                "audio": {
                    "sample_rate": 800,
                    "samples_per_place": 16,
                    "text": "text",
                    "max_labels": 4,
                    "augment": {"speed": [0.9, 1.1], "noise": [30, 50], "gain": [-6, 0]},
                    **audio,
                },
                "validation_fraction": 0.25,
                "sequence_length": 12,
                "cache_dir": str(folder / "cache"),
            },
            "train": {"steps": 8, "batch_size": 4, "log_every": 1, "objective": {"kind": "ctc"}},
            "eval": {"every": 4, "batches": None},
            "checkpoint": {"every": 4},
            "run": {"dir": str(folder / run)},
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Config]:
    folder = tmp_path_factory.mktemp("recordings")
    config = make_config(folder, "run")
    assert train(config) == 0
    return folder, config


def test_a_run_that_was_stopped_hears_the_recordings_that_it_would_have_heard(
    finished, monkeypatch
) -> None:
    folder, config = finished
    stopped = make_config(folder, "stopped")
    assert_a_stopped_run_is_the_whole(config, stopped, monkeypatch)


def test_a_run_keeps_its_characters(finished) -> None:
    folder, config = finished
    shutil.copytree(config.run.dir, folder / "copy")
    (folder / "train.parquet").rename(folder / "elsewhere.parquet")
    run = load(folder / "copy")
    (folder / "elsewhere.parquet").rename(folder / "train.parquet")
    assert run.tokenizer.decode([0, 1, 2, 3]) == "abc\ufffd"
    assert run.step == 8


def test_a_run_ends_with_some_recordings_and_what_is_heard(finished) -> None:
    _, config = finished
    first, *lines = RunDirectory(config.run.dir).samples.read_text().splitlines()
    assert first == "--- step 8" and len(lines) == 4
    assert all(re.fullmatch(r"\d  said: [abc]{1,3}; heard: [abc\ufffd]*", line) for line in lines)
    [row, _] = samples_of(load(config.run.dir), validation_of(config))[:2]
    assert row.pixels.dtype == np.uint8 and row.pixels.shape[0] == 80 and row.pixels.max() == 255


def validation_of(config: Config) -> tuple[Part, ...]:
    return Stores(config.data, tokenizer_of(config.data)).validation


def test_a_run_transcribes_recordings(finished, capsys) -> None:
    folder, config = finished
    files = [folder / name for name in ("ab.wav", "c.flac")]
    for file in files:
        kind = file.suffix[1:].upper()
        file.write_bytes(encoded(spoken(file.stem, 1600), 1600, kind))
    assert main(["predict", config.run.dir, *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [*map(str, files)]
    assert all(set(line.partition(": ")[2]) <= {*LETTERS, "\ufffd"} for line in lines)

    assert main(["predict", config.run.dir, str(files[0]), "train.batch_size=8", "--json"]) == 0
    [said] = json.loads(capsys.readouterr().out)
    assert said == {"file": str(files[0]), "text": lines[0].partition(": ")[2]}

    assert main(["eval", config.run.dir, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["recordings"], report["words"], report["too_long"]) == (4, 4, 0)

    run = load(config.run.dir)
    found = measure_on(run, run.config.data)  # as the arena does
    assert found["loss"] == pytest.approx(report["loss"], rel=1e-6)  # of float32 sums
    rows = read_rows(RunDirectory(config.run.dir).metrics)
    *_, said = (row["eval/label_error_rate"] for row in rows if "eval/loss" in row)
    assert found["label_error_rate"] == said


def test_what_cannot_be_transcribed_is_refused(finished, capsys) -> None:
    folder, config = finished
    (folder / "text.wav").write_text("abc")
    (folder / "long.wav").write_bytes(encoded(spoken("abca")))
    for name, message in {
        "gone.wav": "gone.wav: No such file or directory",
        "text.wav": "text.wav: the recording is damaged or none (Format not recognised)",
        "long.wav": "long.wav lasts 0.32 s, and rows of this run hold 0.24 s; cut it",
    }.items():
        assert main(["predict", config.run.dir, str(folder / name)]) == 2
        assert message in capsys.readouterr().err


def test_recordings_are_classified(tmp_path, capsys) -> None:
    labels = [number % 3 for number in range(12)]
    contents = [encoded(spoken("abc"[label] * (1 + label))) for label in labels]
    names = ("low", "middle", "high")
    source = write_parquet(tmp_path / "a.parquet", contents, labels, "label", names)
    given = make_config(tmp_path, "run").model_dump(mode="json", by_alias=True)
    data = given["data"] | {"source": source, "tokenizer": "classes"}
    data["audio"] |= {"text": None, "label": "label", "max_labels": None}
    given |= {"data": data, "model": given["model"] | {"outputs": {"kind": "classes"}}}
    given["train"] |= {"objective": {"kind": "classes"}}
    config = Config.model_validate(given)
    assert train(config) == 0
    told = capsys.readouterr().out
    assert re.search(r": 9 recordings, \d+ s to train on, \d\d% of their places hold sound", told)

    (tmp_path / "b.wav").write_bytes(encoded(spoken("b")))
    assert main(["predict", config.run.dir, str(tmp_path / "b.wav"), "--json"]) == 0
    [said] = json.loads(capsys.readouterr().out)
    assert set(said["classes"]) == set(names)
    assert main(["eval", config.run.dir, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 3


def test_a_run_that_filled_in_hidden_frames_is_trained_further_on_texts(tmp_path, capsys) -> None:
    """Both on rows of several recordings."""
    given = make_config(tmp_path, "texts", augment={}).model_dump(mode="json", by_alias=True)
    given["data"]["audio"] |= {"pack": True, "max_labels": None}
    given["data"]["sequence_length"] = 24
    given["model"]["inputs"] |= {"mask": True, "window": 16}
    texts = given | {"train": given["train"] | {"steps": 2}}
    hidden = {
        "model": given["model"] | {"outputs": {"kind": "regression"}},
        "train": texts["train"] | {"objective": {"kind": "masked_frames", "block": 2}},
        "run": {"dir": str(tmp_path / "hidden")},
    }
    assert train(Config.model_validate(texts | hidden)) == 0
    told = capsys.readouterr().out
    [rows] = re.findall(r"12 recordings, \d+ s in (\d+) rows to train on, 8\d% of their pl", told)
    assert "4 rows of recordings × 24 = 96 tokens" in told

    start = {"from": hidden["run"]["dir"], "partial": ["head", "regression*"]}
    optimizer = {"kind": "adamw", "learning_rate": 1e-9}
    assert train(Config.model_validate(texts | {"init": start, "optimizer": optimizer})) == 0
    before, after = (load(run).params for run in (hidden["run"]["dir"], texts["run"]["dir"]))
    assert after.keys() ^ before.keys() == {"head", "regression", "regression_bias"}
    for name in before.keys() & after.keys():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), before[name], after[name]
        )
    manifest = json.loads(RunDirectory(texts["run"]["dir"]).manifest.read_text())
    [entry, _] = manifest["data"]
    assert entry["rows"] == int(rows) and entry["packed"] == {"slowest": 1.0}


def test_stores_are_prepared_and_inspected(tmp_path, capfd) -> None:
    config = make_config(tmp_path, "run", letters="lower")
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json(by_alias=True))
    assert main(["data", "prepare", str(file)]) == 0
    assert "12 recordings, " in capfd.readouterr().err
    assert main(["data", "inspect", str(file)]) == 0
    said = capfd.readouterr().out
    assert "0 to 800 Hz" in said and "31 characters, the longest 3" in said


def test_data_and_model_that_differ_are_refused(tmp_path) -> None:
    given = make_config(tmp_path, "run").model_dump(mode="json", by_alias=True)
    for audio, message in [
        (
            {"sample_rate": 16000},
            "data.audio.sample_rate is 16000, and that of model.inputs frames",
        ),
        (
            {"samples_per_place": 8},
            "of model.inputs frames is 16; give data.audio.samples_per_plac",
        ),
        (
            {"text": None, "label": "l", "max_labels": None},
            "tokenizer is characters, but audio.lab",
        ),
    ]:
        changed = given["data"] | {"audio": given["data"]["audio"] | audio}
        with pytest.raises(ValidationError, match=message):
            Config.model_validate(given | {"data": changed})
    label = {"text": None, "label": "l", "max_labels": None}
    data = given["data"] | {"tokenizer": None, "audio": given["data"]["audio"] | label}
    with pytest.raises(
        ValidationError, match="label is given, which train.objective classes learns"
    ):
        Config.model_validate(given | {"data": data})
    model = given["model"] | {"outputs": {"kind": "classes"}}
    packed = {"data": given["data"] | {"audio": given["data"]["audio"] | {"pack": True}}}
    with pytest.raises(ValidationError, match="max_labels is 4, but with pack a row has the texts"):
        Config.model_validate(given | packed)
    packed["data"]["audio"] |= {"max_labels": None}
    with pytest.raises(ValidationError, match="the place between two recordings has 16 samples, t"):
        Config.model_validate(given | packed)
    for key, value, message in (
        ("inputs", given["model"]["inputs"] | {"silence": "heard"}, "silence heard all of a row"),
        ("positions", {"kind": "convolution", "groups": 1}, "positions convolution read all of"),
    ):
        with pytest.raises(ValidationError, match=message):
            Config.model_validate(given | packed | {"model": given["model"] | {key: value}})
    mixed = given["train"] | {"objective": {"kind": "classes", "mixup": 0.2}}
    with pytest.raises(ValidationError, match="has mixup, which blends pictures, but model.inputs"):
        Config.model_validate(given | {"data": data, "model": model, "train": mixed})
