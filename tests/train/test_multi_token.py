"""Runs that predict several tokens ahead: resumed, continued, exported, and their own drafts."""

from pathlib import Path

import jax
import numpy as np
import pytest

import jaxformer as jf
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.config import Config
from jaxformer.generate.sampling import Sampling
from jaxformer.generate.speculative import SpeculationStats
from jaxformer.model.accounting import flops_per_token, further_flops_per_token
from jaxformer.parallel.mesh import make_mesh
from jaxformer.train.program import make_program
from jaxformer.train.run import train
from tests.runs import assert_same_arrays, make_config, results, saved_arrays
from tests.train.test_loop import signal_at_step

FURTHER = {"further": {"kind": "modules", "count": 2}}
OBJECTIVE = {"objective": {"kind": "multi_token"}}
STEPS = 40


def config_in(folder: Path, **sections: dict) -> Config:
    folder.mkdir(exist_ok=True)
    defaults = {
        "model": FURTHER,
        "train": {"steps": STEPS, "accumulation": 2} | OBJECTIVE,
        "optimizer": {"learning_rate": 0.01},
        "eval": {"every": STEPS},
        "checkpoint": {"every": STEPS // 2},
    }
    return make_config(folder, **{**defaults, **sections})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert train(config_in(folder)) == 0
    return folder / "run"


def test_every_loss_falls_and_validation_is_of_the_next_token(run: Path) -> None:
    rows = results(run)
    first, *_, last = (row for row in rows if "loss" in row)
    for name in ("loss", "loss_2", "loss_3"):
        assert last[name] < 0.8 * first[name]
    evaluated = rows[-1] if "eval/loss" in rows[-1] else rows[-2]
    assert evaluated["eval/loss"] == pytest.approx(last["loss"], abs=0.5)
    assert "eval/loss_2" not in evaluated


def test_a_resumed_run_is_the_same_to_the_last_bit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(tmp_path)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 7)
        assert train(config) == 75
    assert train(config) == 0
    assert_same_arrays(saved_arrays(tmp_path / "run", STEPS), saved_arrays(run, STEPS))


def test_a_run_generates_with_its_own_predictions(run: Path) -> None:
    """After a prompt of the text, whose words of four letters and a space repeat."""
    loaded = jf.load(run)
    prompt = [list(b"abcd efgh ")]
    greedy = {"max_new_tokens": 24, "sampling": Sampling(temperature=0)}
    stats = SpeculationStats()
    decoder = loaded.decoder_with("mtp")
    ours = np.concatenate(list(decoder.decode(prompt, **greedy, stats=stats)), axis=1)
    theirs = np.concatenate(list(loaded.decoder.decode(prompt, **greedy)), axis=1)
    np.testing.assert_array_equal(ours, theirs)
    assert stats.lengths == [2] * len(stats.lengths)
    assert stats.accepted > 0


def test_predictions_can_be_added_to_a_trained_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = make_config(tmp_path / "plain", train={"steps": 3}, eval={"every": 3})
    assert train(plain) == 0
    config = config_in(
        tmp_path / "more",
        train={"steps": 3, "freeze": ["stack/*", "embedding", "final_norm/*"]} | OBJECTIVE,
        init={"from": str(tmp_path / "plain" / "run"), "partial": ["further/*"]},
    )
    assert train(config) == 0
    before, after = (
        saved_arrays(tmp_path / name / "run", step) for name, step in (("plain", 3), ("more", 3))
    )
    ours = {path for path in after if path.startswith("params")}
    kept = {path for path in ours if "further" not in path}
    assert len(ours) > len(kept) > 0
    for path in kept:
        np.testing.assert_array_equal(after[path], before[path.replace("params", "ema")])


def test_an_export_leaves_them_out_and_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(run, tmp_path / "out")
    assert "leaving out model.further modules" in capsys.readouterr().err
    names = HuggingFaceFolder(tmp_path / "out").tensors.keys()
    assert "model.layers.1.mlp.up_proj.weight" in names
    assert not [name for name in names if "layers.2" in name or "further" in name]


def test_a_step_counts_what_the_objective_computes(tmp_path: Path) -> None:
    mesh = make_mesh({}, devices=jax.devices()[:1])
    several, one = (
        make_program(config_in(tmp_path, train={"objective": {"kind": kind}}), mesh, 257)
        for kind in ("multi_token", "next_token")
    )
    tokens, length = several.tokens_per_step, several.config.data.sequence_length
    decoding = flops_per_token(several.model, length)
    assert one.flops_per_step == 3 * decoding * tokens
    more = further_flops_per_token(several.model, length)
    assert several.flops_per_step == 3 * (decoding + more) * tokens > one.flops_per_step


def test_frozen_predictions_that_are_not_computed_save_nothing(tmp_path: Path) -> None:
    mesh = make_mesh({}, devices=jax.devices()[:1])
    frozen = {"freeze": ["further/*"], "objective": {"kind": "next_token"}}
    program = make_program(config_in(tmp_path, train=frozen), mesh, 257)
    assert program.frozen_products == 0
    computed = make_program(config_in(tmp_path, train=frozen | OBJECTIVE), mesh, 257)
    # A join, attention's four matrices and three of the FFN, in each of two modules.
    assert computed.frozen_products == 2 * (2 * 16 * 16 + 4 * 16 * 16 + 3 * 16 * 24)
