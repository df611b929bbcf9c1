"""Runs that are trained on pictures."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from jaxformer.arena.afterwards import seen_by
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.cli import main
from jaxformer.config import Config
from jaxformer.evaluate.by_position import measure_on
from jaxformer.parallel.mesh import make_mesh
from jaxformer.run import load
from jaxformer.train.metrics import read_rows
from jaxformer.train.program import make_program, weights
from jaxformer.train.run import train
from jaxformer.train.start import begin, find_start
from tests.data.pictures import ANIMALS, MODEL, write_numbered
from tests.runs import assert_a_stopped_run_is_the_whole


def make_config(folder: Path, run: str) -> Config:
    return Config.model_validate(
        {
            "model": MODEL,
            "data": {
                "kind": "images",
                "source": write_numbered(folder, 24),
                "images": {
                    "size": [8, 8],
                    "augment": {"pad": 1, "flip": True, "erase": 0.2},
                },
                "validation_fraction": 0.25,
                "sequence_length": 4,
                "cache_dir": str(folder / "cache"),
            },
            "train": {
                "steps": 8,
                "batch_size": 4,
                "log_every": 1,
                "objective": {"kind": "classes"},
            },
            "eval": {"every": 4, "batches": None},
            "checkpoint": {"every": 4},
            "run": {"dir": str(folder / run)},
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Config]:
    folder = tmp_path_factory.mktemp("pictures")
    config = make_config(folder, "run")
    assert train(config) == 0
    return folder, config


def test_a_run_on_larger_pictures_starts_with_the_positions_of_smaller_ones(finished) -> None:
    _, config = finished
    whole = config.model_dump(mode="json", by_alias=True)
    whole["model"]["positions"]["max_length"] = whole["data"]["sequence_length"] = 6
    whole["model"]["inputs"]["size"] = whole["data"]["images"]["size"] = [12, 8]
    larger = Config.model_validate(whole | {"init": {"from": config.run.dir}})
    program = make_program(larger, make_mesh(larger.mesh.sizes), 3)
    start = find_start(program)
    assert "resized: position_embedding, of 2 × 2 patches to 3 × 2" in start.notes
    before = load(config.run.dir).params["position_embedding"].reshape(2, 2, -1)
    state, _ = begin(start, program)
    now = weights(state)["position_embedding"].reshape(3, 2, -1)
    # The middle row lies in the middle of both former rows, however a cubic weighs them.
    np.testing.assert_allclose(now[1], before.mean(axis=0), atol=1e-6)


def test_an_arena_shows_what_runs_say_of_pictures(finished) -> None:
    _, config = finished
    rows = seen_by({"one": config.run.dir, "other": config.run.dir})
    names = {load(config.run.dir).tokenizer.decode([number]) for number in range(3)}
    assert [sorted(row["answers"]) for row in rows] == [["one", "other"]] * 6
    for row in rows:
        picture = Image.open(io.BytesIO(base64.b64decode(row["picture"])))
        assert (picture.format, picture.size, picture.mode) == ("PNG", (8, 8), "RGB")
        assert {row["is"], *row["answers"].values()} <= names


def test_a_run_that_was_stopped_sees_the_pictures_that_it_would_have_seen(
    finished, monkeypatch
) -> None:
    folder, config = finished
    stopped = make_config(folder, "stopped")
    assert_a_stopped_run_is_the_whole(config, stopped, monkeypatch)


def test_a_run_of_pictures_is_loaded_without_them(finished) -> None:
    folder, config = finished
    shutil.copytree(config.run.dir, folder / "copy")
    (folder / "train.parquet").rename(folder / "elsewhere.parquet")
    run = load(folder / "copy")
    (folder / "elsewhere.parquet").rename(folder / "train.parquet")
    assert run.tokenizer.decode([0, 1, 2]) == ", ".join(ANIMALS)
    assert run.step == 8


def test_a_run_says_what_a_picture_shows(finished, capsys) -> None:
    folder, config = finished
    files = [str(folder / name) for name in ("red.png", "blue.png")]
    for file, colour in zip(files, [(255, 0, 0), (0, 0, 255)], strict=True):
        Image.new("RGB", (9, 9), colour).save(file)
    assert main(["predict", config.run.dir, *files, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == files
    assert all(line.count("%") == 2 for line in lines)

    assert main(["predict", config.run.dir, files[0], "train.batch_size=8", "--json"]) == 0
    [said] = json.loads(capsys.readouterr().out)
    assert said["file"] == files[0] and set(said["classes"]) == set(ANIMALS)
    assert sum(said["classes"].values()) == pytest.approx(1, abs=1e-5)

    assert main(["eval", config.run.dir, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == np.sum(report["confusion"]) == 6
    assert [each["name"] for each in report["classes"]] == list(ANIMALS)

    run = load(config.run.dir)
    found = measure_on(run, run.config.data)  # as the arena does
    assert (found["rows"], found["accuracy"]) == (6, report["accuracy"])
    assert found["loss"] == pytest.approx(report["loss"], rel=1e-6)  # of float32 sums


def test_a_run_ends_with_some_pictures_and_what_they_are_taken_for(finished) -> None:
    """All six that it validates on, since there are no more."""
    _, config = finished
    run = RunDirectory(config.run.dir)
    first, *lines = run.samples.read_text().splitlines()
    assert first == "--- step 8" and len(lines) == 6
    names = "|".join(ANIMALS)
    assert all(re.fullmatch(rf"\d  ({names}), taken for ({names})", line) for line in lines)
    [events] = Path(config.run.dir, "tensorboard").glob("events.*")
    assert b"samples/6" in events.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{folder}/gone.png"], "gone.png: No such file or directory; give files that can"),
        (["{folder}/text.png"], "text.png: the picture is no picture; allowed: PNG, JPEG"),
        (["train.batch_size=8"], "there is no file to read; give the names of picture files"),
    ],
)
def test_what_is_no_picture_is_refused(finished, words, message, capsys) -> None:
    folder, config = finished
    (folder / "text.png").write_text("a cat")
    given = [word.format(folder=folder) for word in words]
    assert main(["predict", config.run.dir, *given]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_filled_in_patches_is_trained_further_on_classes(tmp_path, capsys) -> None:
    classes = make_config(tmp_path, "classes").model_dump(mode="json", by_alias=True)
    inputs, train_section = MODEL["inputs"] | {"mask": True}, classes["train"] | {"steps": 2}
    model = classes["model"] | {"inputs": inputs}
    hidden = {
        "model": model | {"outputs": {"kind": "regression"}},
        "train": train_section | {"objective": {"kind": "masked_patches", "rate": 0.5}},
        "run": {"dir": str(tmp_path / "hidden")},
    }
    assert train(Config.model_validate(classes | hidden)) == 0
    capsys.readouterr()
    assert main(["eval", hidden["run"]["dir"], "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tokens"] == 6 * 2 * 4 and said["variance"] == pytest.approx(1, abs=1e-3)
    assert said["loss"] == read_rows(RunDirectory(hidden["run"]["dir"]).metrics)[-1]["eval/loss"]
    assert main(["predict", hidden["run"]["dir"], "a.png"]) == 2
    assert "masked_patches, which predicts what is hidden" in capsys.readouterr().err

    start = {"from": hidden["run"]["dir"], "partial": ["head*", "regression*"]}
    further = {
        "model": model,
        "train": train_section,
        "init": start,
        "optimizer": {"kind": "adamw", "learning_rate": 1e-9},
    }
    assert train(Config.model_validate(classes | further)) == 0
    told = capsys.readouterr().out
    assert "fresh: head [8, 3]" in told and "not taken: regression [8, 48]" in told
    before, after = (load(run).params for run in (hidden["run"]["dir"], classes["run"]["dir"]))
    assert after.keys() - before.keys() == {"head", "head_bias"}
    for name in before.keys() & after.keys():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), before[name], after[name]
        )


def test_data_and_inputs_that_differ_are_refused(tmp_path) -> None:
    given = make_config(tmp_path, "run").model_dump(mode="json")
    inputs, data = given["model"]["inputs"], given["data"]
    images = {"model": given["model"] | {"inputs": inputs | {"size": [16, 4]}}}
    length = {"data": data | {"sequence_length": 3}}
    text = {"data": {"sequence_length": 4}}
    for changed, message in [
        (images, r"pictures of \[height, width, channels\] \[8, 8, 3\], but model.inputs reads"),
        (length, "picture into 4 patches; give data.sequence_length=4"),
        (text, "data.kind is text, but model.inputs patches reads images; give data.kind=images"),
    ]:
        with pytest.raises(ValidationError, match=message):
            Config.model_validate(given | changed)
