"""CLIP and SigLIP compare texts and pictures as they did in transformers, and go back there as they
came."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from parity.test_encoders import loaded
from parity.weights import move

import jaxformer as jf
from jaxformer.batch import Pair, Source
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from tests.checkpoint.interop.encoders import write_word_pieces
from tests.runs import assert_same_arrays, saved_arrays

VOCAB, LENGTH, START, END = 40, 12, 2, 3  # those of `write_word_pieces`, [CLS] and [SEP]
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": VOCAB, "hidden_size": 24, "max_position_embeddings": LENGTH, **LAYERS}
VISION = {"hidden_size": 32, "image_size": 16, "patch_size": 4, **LAYERS}
ENDS = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": 0}
OTHER = {"hidden_act": "gelu", "layer_norm_eps": 1e-3}
MODELS = {
    "clip": transformers.CLIPConfig(
        text_config=TEXT | ENDS, vision_config=VISION, projection_dim=20
    ),
    "clip_other": transformers.CLIPConfig(
        text_config=TEXT | ENDS | OTHER, vision_config=VISION | OTHER, projection_dim=32
    ),
    "siglip": transformers.SiglipConfig(
        text_config=TEXT | ENDS | {"projection_size": 32}, vision_config=VISION
    ),
}
PUBLISHED = {
    transformers.CLIPModel: (transformers.CLIPConfig(), 151_277_313),
    transformers.SiglipModel: (transformers.SiglipConfig(), 203_155_970),
}


def texts_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Three texts and which of their places are not padding; SigLIP sees all."""
    random = np.random.default_rng(0)
    tokens, sizes = random.integers(4, VOCAB, (3, LENGTH)), np.array([[LENGTH], [7], [2]])
    places = np.arange(LENGTH)
    tokens[:, 0] = START
    tokens = np.where(places < sizes - 1, tokens, np.where(places == sizes - 1, END, 0))
    real = places < sizes
    return tokens, real if name.startswith("clip") else np.ones_like(real)


def their_logits(model: torch.nn.Module, texts: tuple, pixels: np.ndarray) -> np.ndarray:
    tokens, real = (torch.tensor(each.astype(int)) for each in texts)
    with torch.no_grad():
        found = model(input_ids=tokens, attention_mask=real, pixel_values=torch.tensor(pixels))
    return found.logits_per_text.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_import_and_export_keep_the_towers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    is_clip = name.startswith("clip")
    kind = transformers.CLIPModel if is_clip else transformers.SiglipModel
    theirs = kind(MODELS[name]).eval()
    move(theirs)
    theirs.logit_scale.data += 1  # SigLIP's is about 0 here, where logits hardly differ
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    write_word_pieces(tmp_path / "theirs")
    if is_clip:
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    else:
        processor = transformers.SiglipImageProcessor(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path / "theirs")
    import_model(HuggingFaceFolder(tmp_path / "theirs"), tmp_path / "run")
    run = jf.load(tmp_path / "run")
    assert run.config.data.images.fill == (None if is_clip else 0)

    texts = texts_of(name)
    pictures = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), np.uint8)
    pixels = processor(list(pictures), return_tensors="np")["pixel_values"]
    expected = their_logits(theirs, texts, pixels)
    tokens, real = texts
    pair = Pair(tokens, Source(pictures))
    logits = run.model.apply({"params": run.params}, pair, segment_ids=real.astype(np.int32))
    assert np.std(expected) > 0.1  # or agreement would mean nothing
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)

    options = export_model(tmp_path / "run", tmp_path / "ours")
    assert options["text_config"]["eos_token_id"] == run.tokenizer.eos_id
    back = loaded(tmp_path / "ours", kind)
    np.testing.assert_allclose(their_logits(back, texts, pixels), expected, atol=1e-5, rtol=0)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    prepared = processor(list(pictures), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(prepared, pixels, atol=1e-5, rtol=0)
    import_model(HuggingFaceFolder(tmp_path / "ours"), tmp_path / "again")
    assert_same_arrays(saved_arrays(tmp_path / "run", 0), saved_arrays(tmp_path / "again", 0))
    assert jf.load_config(tmp_path / "again/config.yaml").model == run.config.model


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_published_sizes_have_their_published_numbers_of_parameters(kind: type) -> None:
    config, count = PUBLISHED[kind]
    with torch.device("meta"):
        model = kind(config)
    assert sum(each.numel() for each in model.parameters()) == count
