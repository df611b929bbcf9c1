"""A model of pictures says what it said in transformers, and goes back there as it came."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from parity.weights import move

import jaxformer as jf
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from tests.runs import assert_same_arrays, saved_arrays

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}
MODELS = {
    "vit": SIZES,
    "vit_other": {
        **SIZES,
        "image_size": [8, 20],
        "num_channels": 1,
        "qkv_bias": False,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-3,
        "num_labels": 3,
        "id2label": {0: "cat", 1: "dog", 2: "eel"},
        "label2id": {"cat": 0, "dog": 1, "eel": 2},
    },
    "vit_relu": {**SIZES, "hidden_act": "relu", "patch_size": 8},
}
MEAN, STD = [0.48, 0.45, 0.4], [0.22, 0.23, 0.25]


def their_logits(model: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(pixels.transpose(0, 3, 1, 2))).logits.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_import_and_export_keep_the_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**MODELS[name])
    theirs = transformers.ViTForImageClassification(config).eval()
    move(theirs)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    channels = config.num_channels
    height, width = (config.image_size,) * 2 if name != "vit_other" else config.image_size
    transformers.ViTImageProcessor(
        size={"height": height, "width": width},
        image_mean=MEAN[:channels],
        image_std=STD[:channels],
    ).save_pretrained(tmp_path / "theirs")
    import_model(HuggingFaceFolder(tmp_path / "theirs"), tmp_path / "run")
    run = jf.load(tmp_path / "run")

    pictures = np.random.default_rng(0).integers(0, 256, (3, height, width, channels), np.uint8)
    pixels = (pictures / 255 - MEAN[:channels]) / STD[:channels]
    expected = their_logits(theirs, pixels.astype(np.float32))
    logits = run.model.apply({"params": run.params}, pictures)
    assert np.std(expected) > 0.1  # or agreement would mean nothing
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)

    export_model(tmp_path / "run", tmp_path / "ours")
    back, told = transformers.ViTForImageClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(told.values()), told
    assert back.config.id2label == config.id2label
    assert back.config.label2id == config.label2id
    logits = their_logits(back.eval(), pixels.astype(np.float32))
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    if channels == 3:
        prepared = processor(list(pictures), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(prepared.transpose(0, 2, 3, 1), pixels, atol=1e-5, rtol=0)
    import_model(HuggingFaceFolder(tmp_path / "ours"), tmp_path / "again")
    assert_same_arrays(saved_arrays(tmp_path / "run", 0), saved_arrays(tmp_path / "again", 0))
    assert jf.load_config(tmp_path / "again/config.yaml").model == run.config.model
    assert jf.load(tmp_path / "again").tokenizer.fingerprint == run.tokenizer.fingerprint


def test_a_model_without_classifier_is_imported(tmp_path: Path) -> None:
    """A ViTModel, as its authors' weights of 21,843 classes are on the Hub."""
    torch.manual_seed(0)
    theirs = transformers.ViTModel(transformers.ViTConfig(**SIZES)).eval()
    move(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    import_model(HuggingFaceFolder(tmp_path / "theirs"), tmp_path / "run")
    run = jf.load(tmp_path / "run")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    pixels = (pictures / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(torch.tensor(pixels)).last_hidden_state.numpy()
    states, _, _ = run.model.apply({"params": run.params}, pictures, method="hidden")
    np.testing.assert_allclose(states, expected, atol=1e-4, rtol=0)
