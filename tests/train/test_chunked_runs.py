"""Runs of a model that finds its chunks: resumed, evaluated, continued in text, and adapted."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jaxformer.config import Config
from jaxformer.errors import DoesNotFit
from jaxformer.generate.sampling import Sampling
from jaxformer.run import load
from jaxformer.train.program import make_program
from jaxformer.train.run import train
from tests.runs import assert_same_arrays, make_config, results, saved_arrays
from tests.train.test_loop import signal_at_step

MIN_GRU = {"kind": "min_gru"}
INPUTS = {
    "kind": "chunks",
    "encoder": [{"mixer": MIN_GRU}],
    "decoder": [{"mixer": MIN_GRU}],
    "ratio": 3.0,
    "share": 0.4,
}


def config_of(folder, **sections) -> Config:
    folder.mkdir(exist_ok=True)
    train = {"steps": 6, "log_every": 1, "accumulation": 2} | sections.pop("train", {})
    return make_config(folder, model={"inputs": INPUTS}, train=train, **sections)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert train(config_of(folder)) == 0
    return folder / "run"


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, whole, monkeypatch):
    config = config_of(tmp_path)
    with monkeypatch.context() as patch:
        signal_at_step(patch, 3)
        assert train(config) == 75
    assert train(config) == 0
    assert results(tmp_path / "run")[-1] == results(whole)[-1]
    assert_same_arrays(saved_arrays(tmp_path / "run", 6), saved_arrays(whole, 6))


def test_metrics_have_the_share_of_chunks_and_the_loss_that_holds_it(whole):
    rows = [row for row in results(whole) if "inputs/chunks" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert 1 / 16 <= row["inputs/chunks"] <= 7 / 16  # ⌈0.4 · 16⌉ at most
        assert 0 <= row["inputs/overflow"] <= 1 - row["inputs/chunks"]
        assert 0 < row["inputs/boundary_probability"] < 1
        assert 0 < row["layer_loss"] < 1
    evaluations = [row["eval/loss"] for row in results(whole) if "eval/loss" in row]
    assert evaluations[-1] < evaluations[0]


def test_decoding_continues_as_the_whole_row_would(whole):
    """Greedily, from two prompts, one of which is padded."""
    run = load(whole)
    prompts = [list(b"abcd efgh"), list(b"ab")]
    decoded = run.decoder.decode(prompts, max_new_tokens=5, sampling=Sampling(temperature=0.0))
    made = np.concatenate(list(decoded), axis=1)
    # Rows as long as the cache, which has room for as many chunks: a prompt and what is decoded at
    # once, each rounded up.
    rows, segment_ids = np.zeros((2, 2, 128), np.int32)
    for row, prompt in enumerate(prompts):
        rows[row, : len(prompt) + 5] = [*prompt, *made[row]]
        segment_ids[row, : len(prompt) + 5] = 1
    logits = run.model.apply({"params": run.params}, rows, None, segment_ids)
    for row, prompt in enumerate(prompts):
        of_new = logits[row, len(prompt) - 1 : len(prompt) + 4]
        assert jnp.argmax(of_new, axis=-1).tolist() == made[row].tolist()


def test_adapters_of_all_mixers_train_and_the_rest_stays(tmp_path, whole):
    options = {
        "init": {"from": str(whole)},
        "lora": {"rank": 2},
        "optimizer": {"learning_rate": 0.1},
    }
    assert train(config_of(tmp_path, **options)) == 0
    base, tuned = load(whole).params, load(tmp_path / "run").params
    for name in ("encoder_0", "decoder_0"):
        change = tuned[name]["mixer"]["update"]["kernel"] - base[name]["mixer"]["update"]["kernel"]
        assert np.abs(change).max() > 1e-3
    np.testing.assert_array_equal(
        tuned["router"]["query"]["kernel"], base["router"]["query"]["kernel"]
    )
    np.testing.assert_array_equal(tuned["around"]["kernel"], base["around"]["kernel"])


def test_overflow_is_told_once(tmp_path, capsys):
    config = config_of(tmp_path, train={"steps": 3})
    inputs = INPUTS | {"ratio": 8.0, "share": 0.125}  # two chunks of a row of 16
    model = config.model.model_copy(update={"inputs": type(config.model.inputs)(**inputs)})
    assert train(config.model_copy(update={"model": model})) == 0
    assert capsys.readouterr().out.count("beyond model.inputs.share") == 1


def test_rows_of_chunks_are_not_cut_over_context(tmp_path):
    mesh = AbstractMesh((1, 2, 1, 1), ("fsdp", "context", "tensor", "stage"))
    with pytest.raises(DoesNotFit, match="context is 2, but rows cannot be cut below model.inputs"):
        make_program(config_of(tmp_path), mesh, vocab_size=300)
