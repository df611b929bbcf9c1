import shutil

import jax
import numpy as np
import pytest

import jaxformer
from jaxformer.errors import UserError
from jaxformer.run import load
from jaxformer.train.run import train
from tests.runs import make_config, saved_arrays, write_text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    assert train(make_config(folder)) == 0
    return folder / "run"


def test_a_run_is_loaded_with_its_configuration_model_and_tokenizer(finished):
    run = jaxformer.load(finished)
    assert run.step == 12
    assert run.config == make_config(finished.parent)
    assert run.tokenizer.name == "bytes"
    logits = run.model.apply({"params": run.params}, np.zeros((1, 3), np.int32))
    assert logits.shape == (1, 3, 257)


def test_the_moving_average_is_what_is_loaded_where_there_is_one(finished):
    run, saved = load(finished / "checkpoints" / "8"), saved_arrays(finished, 8)
    assert run.step == 8
    found = np.asarray(run.params["embedding"])
    np.testing.assert_array_equal(found, saved["ema['embedding']"])
    assert (found != saved["params['embedding']"]).any()


def test_tied_embeddings_are_one_array_wherever_they_are(finished):
    """Initialised, saved with two moments and an average, and loaded."""
    run, saved = load(finished), saved_arrays(finished, 12)
    assert run.config.model.tie_embeddings
    assert {path: array.shape for path, array in saved.items() if 257 in array.shape} == {
        "params['embedding']": (257, 16),
        "ema['embedding']": (257, 16),
        "opt_state[0]['mu']['embedding']": (257, 16),
        "opt_state[0]['nu']['embedding']": (257, 16),
    }
    assert [leaf.shape for leaf in jax.tree.leaves(run.params) if 257 in leaf.shape] == [(257, 16)]


def test_the_same_seed_generates_the_same_text(finished):
    run = load(finished)
    texts = run.generate(["ab", "c"], max_new_tokens=8, seed=3)
    assert texts == load(finished).generate(["ab", "c"], max_new_tokens=8, seed=3)
    assert len(texts) == 2


def test_without_a_chat_template_nobody_is_answered(finished):
    with pytest.raises(UserError, match="data.tokenizer 'bytes' has no chat template; one is look"):
        load(finished).chat("Hi")


def test_parameters_lie_on_the_mesh_that_is_asked_for(finished):
    run = load(finished, ["mesh.data=1", f"mesh.fsdp={len(jax.devices())}"])
    assert dict(run.mesh.shape)["fsdp"] == len(jax.devices())


def test_another_width_is_a_difference_by_path(finished):
    with pytest.raises(UserError, match=r"shape +embedding: float32\[257, 16\] in the checkpoint"):
        load(finished, ["model.d_model=32"])


def test_another_tokenizer_is_refused(finished, monkeypatch):
    monkeypatch.setattr("jaxformer.data.tokenizers.ByteTokenizer.fingerprint", "0123456789abcdef")
    with pytest.raises(UserError, match=r"was trained with the tokenizer bytes of fingerprint"):
        load(finished)


def test_texts_that_began_otherwise_in_training_name_the_key_to_give(finished):
    with pytest.raises(UserError, match=r"was trained with a beginning .* data.add_bos=true"):
        load(finished, ["data.add_bos=false"])


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ([], "it has no folder checkpoints/"),
        (["checkpoints"], "its folder checkpoints/ is empty"),
        (
            ["checkpoints/20.orbax-checkpoint-tmp"],
            "checkpoints/ has only what interrupted saves have left (20.orbax-checkpoint-tmp)",
        ),
    ],
)
def test_a_run_without_a_checkpoint_is_refused(tmp_path, there, why):
    write_text(tmp_path)
    (tmp_path / "config.yaml").write_text(make_config(tmp_path).model_dump_json())
    for name in there:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError) as error:
        load(tmp_path)
    expected = f"{tmp_path} has no checkpoint yet: {why}; train it first, or wait for one"
    assert str(error.value) == expected


def test_a_damaged_newest_checkpoint_is_passed_over_and_a_named_one_refused(
    finished, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "checkpoints" / "12" / "ema" / "_METADATA").unlink()
    assert load(run).step == 8
    assert f"warning: checkpoint {run}/checkpoints/12 is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"checkpoints/12 is damaged: ema/_METADATA: expected"):
        load(run / "checkpoints" / "12")
