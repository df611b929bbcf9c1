"""Runs with objectives that draw noise: resumed, evaluated, and asked for text."""

import json
from pathlib import Path

import jax
import pytest

from jaxformer.cli import main
from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.evaluate.by_position import measure_on
from jaxformer.evaluate.scoring import Continuation, score
from jaxformer.run import Run, load
from jaxformer.train.run import train
from tests.runs import assert_same_arrays, make_config, results, saved_arrays
from tests.train.test_loop import signal_at_step

TEXT = "quick fox."  # no letter comes twice
KINDS = ["masked_diffusion", "block_diffusion", "prefix"]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(False):
        yield


def config_of(folder: Path, objective: dict, **train: object) -> Config:
    folder.mkdir()
    return make_config(
        folder,
        model={"inputs": {"kind": "tokens", "mask": True}},
        train={"objective": objective, "log_every": 1} | train,
        optimizer={"learning_rate": 0.01},
        eval={"sample_tokens": 8},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_to_the_last_bit_and_adds_up_micro_batches(kind, tmp_path, monkeypatch):
    options = {"steps": 4, "accumulation": 2}
    whole = config_of(tmp_path / "whole", {"kind": kind}, **options)
    assert train(whole) == 0
    stopped = config_of(tmp_path / "stopped", {"kind": kind}, **options)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 2)
        assert train(stopped) == 75
    assert train(stopped) == 0
    ours, theirs = (saved_arrays(tmp_path / name / "run", 4) for name in ("stopped", "whole"))
    assert_same_arrays(ours, theirs)

    rows = results(tmp_path / "whole" / "run")
    [evaluation] = [row for row in rows if "eval/loss" in row]
    is_bound = whole.train.objective.is_bound
    assert evaluation.get("eval/is_bound") == (1 if is_bound else None)
    assert len((tmp_path / "whole" / "run" / "samples.txt").read_text()) > 8


@pytest.fixture(scope="module", params=["masked_diffusion", "block_diffusion"])
def memorised(request, tmp_path_factory) -> Run:
    """A model that has seen nothing but one sentence, again and again."""
    with jax.enable_x64(False):
        folder = tmp_path_factory.mktemp("memorised") / request.param
        config = config_of(folder, {"kind": request.param}, steps=150, batch_size=8, log_every=50)
        (folder / "text.txt").write_text(TEXT * 300)
        at_the_end = {"every": config.train.steps}
        config = config.model_copy(
            update={
                "model": config.model.model_copy(update={"d_model": 32}),
                "eval": config.eval.model_copy(update=at_the_end),
                "checkpoint": config.checkpoint.model_copy(update=at_the_end),
            }
        )
        assert train(config) == 0
        return load(folder / "run")


@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"entropy_bound": 0.1}], ids=str)
def test_a_sentence_learned_by_heart_is_continued(memorised, options):
    text = memorised.generate(TEXT[:5], max_new_tokens=len(TEXT) - 5, temperature=0.0, **options)
    assert text == TEXT[5:]


def test_an_evaluation_says_that_it_is_a_bound(memorised, capsys):
    path = str(Path(memorised.config.run.dir))
    assert main(["eval", path, "eval.batches=1"]) == 0
    table = capsys.readouterr().out
    assert table.count("at most") == 3
    assert main(["eval", path, "eval.batches=1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["is_bound"] is True and record["loss"] < 1.0


def test_a_model_that_does_not_read_from_left_to_right_scores_no_continuations(memorised):
    kind = memorised.config.train.objective.kind
    with pytest.raises(UserError, match=f"scoring continuations needs.*objective {kind} does not"):
        score(memorised, [Continuation([1], [2])])


def test_an_arena_measures_its_bound(memorised):
    found = measure_on(memorised, memorised.config.data)
    assert 0 < found["loss"] < 1.0
    assert found["accuracy"] is None and found["by_position"] is None


def test_generation_takes_steps_and_refuses_what_is_no_number_of_them(memorised, capsys):
    path = str(Path(memorised.config.run.dir))
    options = ["--prompt", TEXT[:5], "--max-new-tokens", "5", "--temperature", "0"]
    assert main(["generate", path, *options, "--entropy-bound", "0.1"]) == 0
    assert TEXT in capsys.readouterr().out
    assert main(["generate", path, *options, "--entropy-bound", "0.1", "--steps", "2"]) == 2
    assert "give one" in capsys.readouterr().err
