"""CLIP and SigLIP come from transformers' folders and go back, made without torch."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.families import FAMILIES, family_of
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.checkpoint.interop.table import Table
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from tests.checkpoint.interop.encoders import write_word_pieces
from tests.checkpoint.interop.models import write_tensors

Json = dict[str, Any]
LAYERS: Json = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
TEXT: Json = {"vocab_size": 31, "hidden_size": 8, "max_position_embeddings": 6, **LAYERS}
VISION: Json = {"hidden_size": 12, "image_size": 8, "patch_size": 4, **LAYERS}
CONFIGS: dict[str, Json] = {
    "clip": {
        "model_type": "clip",
        # As the authors' files have it: the sections again, and only these count.
        "text_config": {"hidden_size": 4},
        "text_config_dict": TEXT,
        "vision_config": VISION,
        "vision_config_dict": None,
        "projection_dim": 10,
    },
    "siglip": {
        "model_type": "siglip",
        "text_config": TEXT | {"projection_size": 12, "pad_token_id": 7},
        "vision_config": VISION,
    },
}


def write(folder: Path, config: Json) -> tuple[HuggingFaceFolder, dict[str, np.ndarray]]:
    family = FAMILIES[config["model_type"]]
    table = Table(family, ModelConfig.model_validate(family.read(config)))
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for rule in table.rules
        for name, shape in table.stored(rule).items()
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    positions = {"text_model.embeddings.position_ids": np.zeros((1, 6), np.float32)}
    write_tensors(folder / "model.safetensors", tensors | positions)
    write_word_pieces(folder)
    return HuggingFaceFolder(folder), tensors


@pytest.mark.parametrize("name", CONFIGS)
def test_towers_come_out_as_they_went_in(name: str, tmp_path: Path) -> None:
    source, tensors = write(tmp_path / "model", CONFIGS[name])
    config = import_model(source, tmp_path / "run")
    assert (config.data.sequence_length, config.model.encoder.length) == (6, 4)
    fill = 7 if name == "siglip" else None
    assert config.data.images.fill == fill
    export_model(tmp_path / "run", tmp_path / "out")
    written = HuggingFaceFolder(tmp_path / "out")
    assert written.tensors.keys() == tensors.keys()
    for theirs, tensor in tensors.items():
        np.testing.assert_array_equal(written.read(theirs), tensor)
    for key, section in (("text_config", TEXT), ("vision_config", VISION)):
        assert section.items() <= written.config[key].items()
    assert written.config["text_config"]["eos_token_id"] == 3  # [SEP]
    assert written.config["text_config"]["pad_token_id"] == fill
    processor = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[name]
    assert written.preprocessor["image_processor_type"] == processor


@pytest.mark.parametrize(
    ("name", "section", "changed", "message"),
    [
        ("clip", "vision_config", {"patch_size": 3}, "inputs.size [8, 8] is not divisible by"),
        ("clip", "text_config_dict", {"hidden_act": "selu"}, "text_config has hidden_act 'selu'"),
        ("siglip", "vision_config", {"vision_use_head": False}, "vision_use_head False"),
        ("siglip", "text_config", {"layer_norm_eps": 0.1}, "layer_norm_eps 0.1 in text_config"),
        ("siglip", "text_config", {"projection_size": 8}, "outputs.width is 8 and that side is 12"),
    ],
)
def test_what_would_be_another_model_is_refused(
    name: str, section: str, changed: Json, message: str, tmp_path: Path
) -> None:
    source, _ = write(tmp_path / "model", CONFIGS[name])
    source.config |= {section: source.config[section] | changed}
    with pytest.raises(UserError, match=re.escape(message)):
        import_model(source, tmp_path / "run")


def test_other_models_of_several_parts_are_still_refused() -> None:
    config = CONFIGS["siglip"] | {"model_type": "llava"}
    with pytest.raises(UserError, match="several models in one"):
        family_of(config, "a model")
