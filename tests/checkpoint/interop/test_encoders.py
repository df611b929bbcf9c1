"""BERT in Hugging Face's layout becomes a run, and comes out as it went in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxformer as jf
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.families import FAMILIES
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.checkpoint.interop.table import Table
from jaxformer.cli import main
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from tests.checkpoint.interop.encoders import write_word_pieces
from tests.checkpoint.interop.models import write_tensors

Json = dict[str, Any]
CONFIG: Json = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "position_embedding_type": "absolute",
}


def bert_tensors(config: Json = CONFIG) -> dict[str, np.ndarray]:
    family = FAMILIES["bert"]
    table = Table(family, ModelConfig.model_validate(family.read(config)))
    random = np.random.default_rng(0)
    return {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for rule in table.rules
        for name, shape in table.stored(rule).items()
    }


def write_bert(folder: Path, tensors: dict[str, np.ndarray]) -> HuggingFaceFolder:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tensors(folder / "model.safetensors", tensors)
    write_word_pieces(folder)
    return HuggingFaceFolder(folder)


def assert_exported(run: Path, out: Path, expected: dict[str, np.ndarray]) -> HuggingFaceFolder:
    export_model(run, out)
    written = HuggingFaceFolder(out)
    assert written.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(written.read(name), tensor)
    return written


def test_bert_comes_out_as_it_went_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the names of its authors' file: LayerNorms of gamma and beta, and parts that are copies
    or predict the next sentence."""
    tensors = bert_tensors()
    stored = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    stored |= {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        "bert.pooler.dense.weight": np.ones((8, 8), np.float32),
        "cls.seq_relationship.bias": np.ones(2, np.float32),
    }
    write_bert(tmp_path / "model", stored)
    assert main(["import", str(tmp_path / "model"), str(tmp_path / "run")]) == 0
    assert ".embed(" in capsys.readouterr().out
    run = jf.load(tmp_path / "run")
    assert run.config.train.objective.mask_id == 4
    assert run.embed(["abc", "a longer text"]).shape == (2, 8)
    written = assert_exported(tmp_path / "run", tmp_path / "out", tensors)
    assert written.config["architectures"] == ["BertForMaskedLM"]


def test_bert_without_a_head_has_none_afterwards(tmp_path: Path) -> None:
    """The file of a BertModel, whose names have no prefix, whatever its config.json says."""
    tensors = {
        name: tensor for name, tensor in bert_tensors().items() if not name.startswith("cls.")
    }
    stored = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    import_model(write_bert(tmp_path / "model", stored), tmp_path / "run")
    assert jf.load(tmp_path / "run").config.model.outputs.kind == "linear"
    written = assert_exported(tmp_path / "run", tmp_path / "out", tensors)
    assert written.config["architectures"] == ["BertModel"]


def test_a_tokenizer_without_mask_is_refused(tmp_path: Path) -> None:
    source = write_bert(tmp_path / "model", bert_tensors())
    (tmp_path / "model/tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no tokenizer\.json with a mask_token"):
        import_model(source, tmp_path / "run")
    (tmp_path / "model/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json with a mask_token"):
        import_model(source, tmp_path / "run")


def test_a_copy_that_differs_is_refused(tmp_path: Path) -> None:
    tensors = bert_tensors()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"] + 1
    with pytest.raises(UserError, match=r"decoder\.bias differs from cls\.predictions\.bias"):
        import_model(write_bert(tmp_path / "model", tensors), tmp_path / "run")
