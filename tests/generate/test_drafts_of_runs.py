"""Drafts named on the command line and in Python, for a run and its own copies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jaxformer
from jaxformer.cli import main
from jaxformer.errors import UserError
from jaxformer.generate.decode import Stats
from jaxformer.generate.sampling import Sampling
from jaxformer.generate.speculative import SpeculationStats
from jaxformer.model.inputs import ChunksConfig
from jaxformer.objectives import BlockDiffusionConfig
from jaxformer.run import Run
from jaxformer.train.run import train
from tests.runs import make_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert train(make_config(folder)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return jaxformer.load(finished)


def test_a_run_continues_a_prompt_with_each_draft_as_without(run: Run, finished: Path) -> None:
    plain = run.generate("abc ab", max_new_tokens=20, temperature=0)
    for draft in ("self:1", "ngram", str(finished)):
        assert run.generate("abc ab", max_new_tokens=20, temperature=0, draft=draft) == plain
    assert run.decoder_with("ngram") is run.decoder_with("ngram")
    assert run.decoder_with(None) is run.decoder


def test_the_weights_of_the_first_layers_are_the_runs_own(run: Run) -> None:
    decoder = run.decoder_with("self:1")
    assert decoder.params is run.decoder.params
    assert decoder.draft_weights is None


def test_the_command_prints_the_continuation_and_what_the_draft_was_worth(
    run: Run, finished: Path, capfd: pytest.CaptureFixture
) -> None:
    argv = ["generate", str(finished), "--prompt", "abc", "--max-new-tokens", "20"]
    argv += ["--temperature", "0"]
    assert main(argv) == 0
    plain = capfd.readouterr().out
    assert main([*argv, "--draft", "self:1", "--draft-tokens", "3", "--stats"]) == 0
    out, err = capfd.readouterr()
    assert out == plain
    lines = err.strip().splitlines()[-3:]
    assert "decoded 20 tokens at" in lines[0]
    assert lines[1].startswith("draft self:1, 3 tokens at once: ")
    assert lines[1].endswith("keys and values are taken back by length")
    assert "times as fast as plain decoding, which decoded 20 tokens at " in lines[2]


def test_statistics_name_counts_and_how_tokens_are_taken_back() -> None:
    stats = SpeculationStats(draft="ngram", taken_back=["taken back"], new_tokens=14)
    stats.lengths += [2, 4]
    stats.proposed, stats.accepted, stats.verifications = 20, 8, 6
    assert str(stats).splitlines()[1] == (
        "draft ngram, 2 to 4 tokens at once: 20 proposed, 40% accepted, 2.33 tokens per "
        "verification; taken back"
    )
    assert str(Stats()) == str(stats.__class__.__mro__[1]())


def test_the_lengths_of_drafts_change_while_decoding(run: Run) -> None:
    stats = SpeculationStats()
    pieces = run.decoder_with("self:1").decode(
        [[1, 2, 3]], max_new_tokens=200, sampling=Sampling(temperature=0), stats=stats
    )
    row = np.concatenate(list(pieces), axis=1)[0]
    plain = run.decoder.decode([[1, 2, 3]], max_new_tokens=200, sampling=Sampling(temperature=0))
    expected = np.concatenate(list(plain), axis=1)[0]
    np.testing.assert_array_equal(row, expected[: len(row)])
    assert len(row) == 200 or row[-1] == run.tokenizer.eos_id
    assert set(stats.lengths) <= {2, 4, 8}


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ("self:", "draft 'self:' does not say how many layers; give self:LAYERS, a number"),
        ("self:2", "draft 'self:2' is out of range; allowed: 1 of the 2 layers"),
        ("self:0", "draft 'self:0' is out of range; allowed: 1 of the 2 layers"),
        (
            "runs/nothing",
            "draft 'runs/nothing' is not there; allowed: self:LAYERS, mtp, ngram",
        ),
    ],
)
def test_a_draft_that_is_not_there_is_refused(run: Run, draft: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run.generate("abc", draft=draft)


def test_a_number_of_tokens_without_a_draft_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="draft_tokens is 3, but there is no draft; give one"):
        run.generate("abc", draft_tokens=3)


def test_a_draft_with_another_tokenizer_is_refused(run: Run, tmp_path: Path) -> None:
    config = make_config(tmp_path, data={"add_bos": False})
    assert train(config) == 0
    other = tmp_path / "run"
    message = (
        rf"draft {other} has the tokenizer bytes of fingerprint \w{{12}}, but this run has bytes "
        rf"of fingerprint \w{{12}}; a draft must have the same one"
    )
    with pytest.raises(UserError, match=message):
        run.generate("abc", draft=str(other))


def test_an_exit_and_a_draft_exclude_each_other(run: Run) -> None:
    with pytest.raises(UserError, match="draft is 'ngram' and exit_confidence 0.9; give one"):
        run.generate("abc", draft="ngram", exit_confidence=0.9)
    with pytest.raises(UserError, match="exit_by is 'state' without exit_confidence; give one"):
        run.generate("abc", exit_by="state")


def test_the_command_exits_early_and_says_where(
    finished: Path, capfd: pytest.CaptureFixture
) -> None:
    argv = ["generate", str(finished), "--prompt", "abc", "--max-new-tokens", "5"]
    assert main([*argv, "--exit-confidence", "0", "--exit-by", "state", "--stats"]) == 0
    assert "tokens left after 1.00 of 2 layers" in capfd.readouterr().err


def test_a_run_that_cannot_be_drafted_for_is_refused(run: Run, finished: Path) -> None:
    """By what it was trained for, and by its inputs; checked before anything is built."""

    def other(**fields: object) -> Run:
        return replace(run, **fields)

    train = run.config.train.model_copy(update={"objective": BlockDiffusionConfig(block=4)})
    blocks = other(config=run.config.model_copy(update={"train": train}))
    needs = "this run was trained with block_diffusion, which does not decode one token after"
    for given in ({"draft": "ngram"}, {"exit_confidence": 0.5}):
        with pytest.raises(UserError, match=needs):
            blocks.generate("abc", **given)
    outer = [{"mixer": {"kind": "min_gru"}}]
    options = {"kind": "chunks", "encoder": outer, "decoder": outer, "ratio": 2.0}
    inputs = ChunksConfig.model_validate(options)
    model_config = run.model.config.model_copy(update={"inputs": inputs})
    chunks = other(model=run.model.clone(config=model_config))
    with pytest.raises(UserError, match="this run has model.inputs chunks, which cannot take tok"):
        chunks.generate("abc", draft="ngram")


def test_passes_and_a_draft_exclude_each_other(run: Run) -> None:
    with pytest.raises(UserError, match="steps and entropy_bound are for models trained with"):
        run.generate("abc", draft="ngram", steps=4)
