"""Whisper comes from transformers' folders and goes back, made without torch."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.families import FAMILIES
from jaxformer.checkpoint.interop.fitting import fit
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.checkpoint.interop.table import Table
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from tests.checkpoint.interop.models import write_tensors, write_tokenizer

Json = dict[str, Any]
CONFIG: Json = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "is_encoder_decoder": True,
    "vocab_size": 30,
    "d_model": 8,
    "num_mel_bins": 4,
    "num_hidden_layers": 1,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 10,
    "max_source_positions": 50,
    "max_target_positions": 12,
    "forced_decoder_ids": [[1, 2]],
    "suppress_tokens": [],
    "decoder_start_token_id": 5,
}
PREPROCESSOR: Json = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 4,
    "sampling_rate": 16000,
    "hop_length": 160,
    "chunk_length": 1,
    "n_fft": 400,
    "padding_value": 0.0,
    "dither": 0.0,
    "padding_side": "right",
    "return_attention_mask": False,
}
# What older files have besides, which follows from the others.
OLDER: Json = {"mel_filters": [[0.0, 0.1]], "n_samples": 16000, "nb_max_frames": 100}
SINES, HEAD = "model.encoder.embed_positions.weight", "proj_out.weight"
EMBEDDING = "model.decoder.embed_tokens.weight"


def tensors_of_whisper() -> dict[str, np.ndarray]:
    family = FAMILIES["whisper"]
    table = Table(family, ModelConfig.model_validate(family.read(CONFIG)))
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for rule in table.rules
        for name, shape in table.stored(rule).items()
    }
    frequencies = np.exp(-np.log(10000) / 3 * np.arange(4))
    phases = np.arange(50)[:, None] * frequencies
    tensors[SINES] = np.concatenate([np.sin(phases), np.cos(phases)], 1).astype(np.float32)
    return tensors


def write(
    folder: Path, tensors: dict[str, np.ndarray], preprocessor: Json = PREPROCESSOR
) -> HuggingFaceFolder:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    write_tensors(folder / "model.safetensors", tensors)
    write_tokenizer(folder)
    return HuggingFaceFolder(folder)


def test_a_whisper_comes_out_as_it_went_in(tmp_path: Path) -> None:
    """With its head stored again, and with sines of half the precision."""
    tensors = tensors_of_whisper()
    stored = tensors | {HEAD: tensors[EMBEDDING], SINES: tensors[SINES].astype(np.float16)}
    source = write(tmp_path / "model", stored, PREPROCESSOR | OLDER)
    config = import_model(source, tmp_path / "run")
    assert config.data.kind == "audio"
    assert (config.data.sequence_length, config.data.audio.source_length) == (12, 50)
    assert config.data.audio.start == (5,)
    assert config.data.audio.samples_per_place == config.model.encoder.inputs.samples == 320
    export_model(tmp_path / "run", tmp_path / "out")
    written = HuggingFaceFolder(tmp_path / "out")
    assert written.tensors.keys() == tensors.keys()
    np.testing.assert_allclose(written.read(SINES), tensors.pop(SINES), atol=1e-5)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written.read(name), tensor)
    assert written.preprocessor == PREPROCESSOR
    kept = {key: CONFIG[key] for key in CONFIG if key.startswith(("encoder", "decoder", "max"))}
    assert kept.items() <= written.config.items()
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["decoder_start_token_id"] == 5
    import_model(written, tmp_path / "again")


def test_a_file_without_a_head_has_names_without_a_prefix(tmp_path: Path) -> None:
    tensors = tensors_of_whisper()
    stored = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    import_model(write(tmp_path / "model", stored), tmp_path / "run")
    export_model(tmp_path / "run", tmp_path / "out")
    written = HuggingFaceFolder(tmp_path / "out")
    np.testing.assert_array_equal(written.read(EMBEDDING), tensors[EMBEDDING])


@pytest.mark.parametrize(
    ("changed", "preprocessor", "message"),
    [
        (SINES, {}, "embed_positions.weight differs by 1 from the sines and cosines of positions"),
        (HEAD, {}, "proj_out.weight differs from model.decoder.embed_tokens.weight"),
        (None, {"hop_length": 320}, "hop_length 320"),
        (None, {"feature_size": 80}, "feature_size 80"),
        (None, {"chunk_length": 30}, "chunk_length 30"),
        (None, {"dither": 0.1}, "dither 0.1"),
        (None, {"mean": 0.1}, "mean 0.1"),
    ],
)
def test_what_would_be_heard_or_written_otherwise_is_refused(
    changed: str | None, preprocessor: Json, message: str, tmp_path: Path
) -> None:
    tensors = tensors_of_whisper()
    tensors[HEAD] = tensors[EMBEDDING]
    if changed is not None:
        tensors[changed] = tensors[changed] + 1
    source = write(tmp_path / "model", tensors, PREPROCESSOR | preprocessor)
    with pytest.raises(UserError, match=re.escape(message)):
        import_model(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("inputs", "length", "message"),
    [
        ({"window": 512}, 50, "encoder.inputs.window is 512, where this family has 400"),
        ({"silence": "hidden"}, 50, "encoder.inputs.silence is 'hidden'"),
        ({"sample_rate": 8000}, 50, "encoder.inputs.sample_rate is 8000, where this family has"),
        ({}, 75, "encoder.length is 75, where this family has whole seconds; allowed: multiples"),
    ],
)
def test_a_model_that_hears_otherwise_is_none(inputs: Json, length: int, message: str) -> None:
    section = FAMILIES["whisper"].read(CONFIG)
    encoder = section["encoder"] | {"inputs": section["encoder"]["inputs"] | inputs}
    model = ModelConfig.model_validate(section | {"encoder": encoder | {"length": length}})
    _, [difference] = fit(FAMILIES["whisper"], model)
    assert message in difference


def test_what_hides_parts_of_spectrograms_in_training_makes_no_other_model() -> None:
    section = FAMILIES["whisper"].read(CONFIG)
    section["encoder"]["inputs"]["augment"] = {"time_masks": 1, "widest": 1}
    _, differences = fit(FAMILIES["whisper"], ModelConfig.model_validate(section))
    assert differences == []
