"""From a run to a folder of weights."""

import json
import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from flax.core import meta

import jaxformer as jf
from jaxformer.checkpoint.interop import exporting
from jaxformer.checkpoint.interop.checkpoint_files import ParameterReader
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.folder import INDEX, HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.checkpoint.interop.tokenizer_folder import write_tokenizer_folder
from jaxformer.checkpoint.manager import Checkpoints
from jaxformer.checkpoint.run_directory import RunDirectory
from jaxformer.cli import main
from jaxformer.config import DataConfig
from jaxformer.data.commands import train_tokenizer
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.errors import UserError
from jaxformer.train.run import train
from tests.checkpoint.interop.models import llama_tensors, write_model
from tests.data.tokenizer_kinds import KINDS, write_kind
from tests.runs import assert_same_arrays, make_config, saved_arrays

WINDOWS = {
    "num_layers": 3,
    "pattern": [{"mixer": {"kind": "attention", "num_heads": 2, "window": 4}}, {}],
    "mixer": {"kind": "attention", "num_heads": 2, "qkv_bias": True},
    "tie_embeddings": False,
}
QWEN2 = {**WINDOWS, "pattern": [{}, {}, {"mixer": {**WINDOWS["mixer"], "window": 4}}]}


def make_run(folder: Path, ema: bool = False, **model: Any) -> Path:
    """A run of a model of `tests.runs` with these options, saved by Orbax at step 0."""
    config = make_config(folder, model=model)
    module = jf.build_model(config.model, vocab_size=257)
    tokens = np.zeros((1, 4), np.int32)
    params = jax.jit(module.init)(jax.random.key(0), tokens)["params"]
    trees = {"params": meta.unbox(params)}
    if ema:
        trees["ema"] = jax.tree.map(lambda leaf: leaf + 1, trees["params"])
    directory = RunDirectory(config.run.dir)
    directory.create(config)
    tokenizer = {"name": "bytes", "fingerprint": load_tokenizer("bytes").fingerprint}
    with Checkpoints(directory.checkpoints) as checkpoints:
        checkpoints.save(0, trees, {"step": 0}, {"tokenizer": tokenizer}, None)
        checkpoints.wait()
    return directory.path


def test_a_run_that_was_imported_comes_out_as_it_went_in(tmp_path: Path) -> None:
    source = HuggingFaceFolder(write_model(tmp_path / "model"))
    import_model(source, tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    written = HuggingFaceFolder(tmp_path / "out")
    assert written.tensors.keys() == source.tensors.keys()
    for name, tensor in llama_tensors().items():
        np.testing.assert_array_equal(written.read(name), tensor)
    assert written.config["max_position_embeddings"] == 64
    assert written.config["rope_parameters"] == {"rope_theta": 500000.0, "rope_type": "default"}
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / file).read_text())["eos_token_id"] == 26
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert settings == {"eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"}


def test_layers_of_a_pattern_and_its_rest_go_out_and_in_again(tmp_path: Path) -> None:
    """Orbax keeps a stacked array in one piece, and layers 0, 1 and 2 are entries 0, 1 and 2."""
    run = make_run(tmp_path, **QWEN2)
    assert export_model(run, tmp_path / "out")["model_type"] == "qwen2"
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]
    assert config["max_position_embeddings"] == 16  # the rows it was trained on
    import_model(HuggingFaceFolder(tmp_path / "out"), tmp_path / "again")
    assert_same_arrays(saved_arrays(run, 0), saved_arrays(tmp_path / "again", 0))


def test_a_tail_of_the_pattern_is_exported(tmp_path: Path) -> None:
    mixer = {"kind": "attention", "num_heads": 2, "qk_norm": True}
    run = make_run(
        tmp_path, num_layers=3, mixer=mixer, pattern=[{}, {"mixer": {**mixer, "window": 4}}]
    )
    assert export_model(run, tmp_path / "out")["model_type"] == "qwen3"
    arrays, written = saved_arrays(run, 0), HuggingFaceFolder(tmp_path / "out")
    rest = "params['stack']['tail']['layer_0']['ffn']['in']['kernel']"
    np.testing.assert_array_equal(written.read("model.layers.2.mlp.up_proj.weight"), arrays[rest].T)
    groups = "params['stack']['groups']['layer_1']['ffn']['in']['kernel']"
    np.testing.assert_array_equal(
        written.read("model.layers.1.mlp.up_proj.weight"), arrays[groups][0].T
    )


def test_the_moving_average_is_what_is_exported(tmp_path: Path) -> None:
    run = make_run(tmp_path, ema=True)
    export_model(run, tmp_path / "out")
    scale = HuggingFaceFolder(tmp_path / "out").read("model.norm.weight")
    np.testing.assert_array_equal(scale, 2.0)  # ones, and one more


def test_an_array_is_gone_when_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_model(HuggingFaceFolder(write_model(tmp_path / "model")), tmp_path / "run")
    read, arrays = ParameterReader.read, []

    def watched(self: ParameterReader, path: str, place: int | None) -> np.ndarray:
        assert [array() for array in arrays] == [None] * len(arrays)
        array = read(self, path, place)
        assert array.size <= 300 * 16  # the embedding's, or a layer's
        arrays.append(weakref.ref(array))
        return array

    monkeypatch.setattr(ParameterReader, "read", watched)
    export_model(tmp_path / "run", tmp_path / "out")
    assert len(arrays) == 3 + 3 * 9


def test_adapters_are_exported_merged(tmp_path: Path) -> None:
    base = make_run(tmp_path)
    config = make_config(
        tmp_path,
        train={"steps": 2, "ema_decay": None},
        optimizer={"learning_rate": 0.1, "schedule": {}},
        lora={"rank": 2},
        init={"from": str(base)},
        run={"dir": str(tmp_path / "tuned")},
    )
    assert train(config) == 0
    export_model(tmp_path / "tuned", tmp_path / "out")
    written, params = HuggingFaceFolder(tmp_path / "out"), jf.load(tmp_path / "tuned").params
    query = params["stack"]["groups"]["layer_0"]["mixer"]["query"]["kernel"][1]
    name = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(written.read(name), query.reshape(16, 16).T)
    untouched = saved_arrays(base, 0)[
        "params['stack']['groups']['layer_0']['mixer']['query']['kernel']"
    ]
    assert np.abs(untouched[1] - query).max() > 1e-4


def test_shards_have_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    export_model(run, tmp_path / "one")
    monkeypatch.setattr(exporting, "SHARD_BYTES", 5000)
    export_model(run, tmp_path / "several")
    index = json.loads((tmp_path / "several" / INDEX).read_text())
    assert set(index["weight_map"].values()) == {
        file.name for file in (tmp_path / "several").glob("model-*.safetensors")
    }
    one, several = (HuggingFaceFolder(tmp_path / name) for name in ("one", "several"))
    assert index["metadata"]["total_size"] == sum(one.read(name).nbytes for name in one.tensors)
    for name in one.tensors:
        np.testing.assert_array_equal(one.read(name), several.read(name))


def test_bfloat16_is_rounded_to_the_nearest(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for dtype in ("float32", "bfloat16"):
        export_model(run, tmp_path / dtype, dtype)
    wide, short = (HuggingFaceFolder(tmp_path / dtype) for dtype in ("float32", "bfloat16"))
    assert short.config["dtype"] == "bfloat16"
    for name in wide.tensors:
        expected = wide.read(name).astype(short.read(name).dtype)
        np.testing.assert_array_equal(short.read(name), expected)


def test_the_tokenizer_of_bytes_becomes_one_of_transformers(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    export_model(run, tmp_path / "out")
    ours, written = load_tokenizer("bytes"), load_tokenizer(str(tmp_path / "out"))
    text = "naïve\n\t \x00 \x7f 漢字 🙂"
    assert written.eos_id == ours.eos_id == 256
    assert written.vocab_size == ours.vocab_size
    np.testing.assert_array_equal(written.encode(text), ours.encode(text))
    assert written.decode(ours.encode(text)) == text


def test_a_model_that_no_family_has_is_refused_with_what_is_in_the_way(tmp_path: Path) -> None:
    mixer = {"kind": "attention", "num_heads": 2, "output_gate": True}
    run = make_run(tmp_path, mixer=mixer)
    with pytest.raises(UserError, match="no family of transformers known here") as error:
        export_model(run, tmp_path / "out")
    assert "mixer.output_gate of every layer is true, where this family has false" in str(
        error.value
    )
    assert not (tmp_path / "out").exists()


def test_a_used_folder_is_not_written_into(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path)
    assert main(["export", str(run), str(tmp_path)]) == 2
    assert "give a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [*KINDS, "a contradiction"])
def test_an_exported_tokenizer_begins_and_ends_texts_as_the_run_did(kind: str, tmp_path) -> None:
    folder = write_kind("llama2" if kind == "a contradiction" else kind, tmp_path / "from")
    if kind == "a contradiction":
        config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
        (tmp_path / "from" / "tokenizer_config.json").write_text(json.dumps(config))
        assert load_tokenizer(folder).prefix_ids == ()
    for add_bos in ("auto", True, False):
        ours = load_tokenizer(folder, add_bos)
        out = tmp_path / str(add_bos)
        out.mkdir()
        write_tokenizer_folder(ours, out)
        definition = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
        ids = definition.encode("yes no").ids
        assert ids[: len(ours.prefix_ids)] == list(ours.prefix_ids)
        assert ids[len(ours.prefix_ids)] == ours.encode("yes no")[0]
        settings = json.loads((out / "tokenizer_config.json").read_text())
        assert settings["eos_token"] == definition.id_to_token(ours.eos_id)
        assert settings.get("add_bos_token", bool(ours.prefix_ids)) == bool(ours.prefix_ids)
        again = load_tokenizer(str(out))
        assert (again.prefix_ids, again.eos_id) == (ours.prefix_ids, ours.eos_id)


def test_a_trained_tokenizer_is_exported_with_the_ends_that_training_had(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 9)
    data = DataConfig(source=f"text:{tmp_path}/a.txt")
    train_tokenizer(data, tmp_path / "mine", 270)
    ours = load_tokenizer(str(tmp_path / "mine"))
    for tokenizer, name in ((ours, "one"), (load_tokenizer("bytes"), "other")):
        (tmp_path / name).mkdir()
        write_tokenizer_folder(tokenizer, tmp_path / name)
        written = tokenizers.Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
        assert written.encode("the 🎉").ids == [tokenizer.eos_id, *tokenizer.encode("the 🎉")]
        settings = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert settings["eos_token"] == "<|endoftext|>"


def test_bytes_that_stand_in_for_a_missing_tokenizer_are_not_exported(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")  # of 300 ids, more than bytes
    (source / "tokenizer.json").unlink()
    import_model(HuggingFaceFolder(source), tmp_path / "run")
    export_model(tmp_path / "run", tmp_path / "out")
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {"config.json", "model.safetensors"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] is None
