"""wav2vec 2.0 and HuBERT say what they said in transformers, and go back there as they came."""

import json
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

VOCAB = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAO")
SIZES = {
    "vocab_size": len(VOCAB),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
MODELS = {
    "wav2vec2": (transformers.Wav2Vec2Config(**SIZES), transformers.Wav2Vec2ForCTC),
    "wav2vec2_large": (transformers.Wav2Vec2Config(**SIZES, **LARGE), transformers.Wav2Vec2ForCTC),
    "hubert": (
        # An odd width, and norms of the large model's convolutions around a base model's layers.
        transformers.HubertConfig(
            **{**SIZES, "num_conv_pos_embeddings": 5},
            feat_extract_norm="layer",
            conv_bias=True,
            hidden_act="gelu_new",
            mask_time_prob=0.0,
        ),
        transformers.HubertForCTC,
    ),
}
PLACES, SAMPLES, BEHIND = (4, 3), 320, 80  # the last place of a recording sees samples behind it
TEXT = "TEA TO TOT EAT"


def write_processor(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({each: at for at, each in enumerate(VOCAB)}))
    transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")),
    ).save_pretrained(folder)


def their_logits(model: torch.nn.Module, waveform: np.ndarray) -> np.ndarray:
    """[samples] → [places, vocab]"""
    prepared = transformers.Wav2Vec2FeatureExtractor()(waveform, sampling_rate=16000)
    [values] = prepared["input_values"]
    with torch.no_grad():
        return model(torch.tensor(np.pad(values, (0, BEHIND)))[None]).logits[0].numpy()


def assert_the_same(model: torch.nn.Module, rows: np.ndarray, found: np.ndarray) -> None:
    for row, places, logits in zip(rows, PLACES, found, strict=True):
        expected = their_logits(model, row[: places * SAMPLES])
        assert np.std(expected) > 0.1  # or agreement would mean nothing
        np.testing.assert_allclose(logits[:places], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_import_and_export_keep_the_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config, kind = MODELS[name]
    theirs = kind(config).eval()
    move(theirs)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    write_processor(tmp_path / "theirs")
    import_model(HuggingFaceFolder(tmp_path / "theirs"), tmp_path / "run")
    run = jf.load(tmp_path / "run")
    assert run.config.train.objective.blank_of(run.model) == 0

    length = max(PLACES)
    rows = np.random.default_rng(0).normal(0.1, 0.3, (2, length * SAMPLES)).astype(np.float32)
    positions = np.broadcast_to(np.arange(length), (2, length))
    real = (positions < np.array(PLACES)[:, None]).astype(np.int32)
    logits = run.model.apply({"params": run.params}, rows, positions, real)
    assert_the_same(theirs, rows, np.asarray(logits))

    export_model(tmp_path / "run", tmp_path / "ours")
    back, told = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values()), told
    assert_the_same(back.eval(), rows, np.asarray(logits))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "ours")
    assert processor.tokenizer(TEXT).input_ids == run.tokenizer.encode(TEXT).tolist()
    assert processor.decode(run.tokenizer.encode(TEXT), group_tokens=False) == TEXT
    assert run.tokenizer.decode(run.tokenizer.encode(TEXT)) == TEXT
    assert back.config.pad_token_id == 0
    import_model(HuggingFaceFolder(tmp_path / "ours"), tmp_path / "again")
    assert_same_arrays(saved_arrays(tmp_path / "run", 0), saved_arrays(tmp_path / "again", 0))
    again = jf.load_config(tmp_path / "again/config.yaml")
    assert again.model == run.config.model
    assert again.train.objective == run.config.train.objective
    assert jf.load(tmp_path / "again").tokenizer.fingerprint == run.tokenizer.fingerprint


def test_a_padded_batch_is_what_it_is_in_transformers(tmp_path: Path) -> None:
    """Where convolutions are normalised place by place, which a mask suffices for there, too."""
    torch.manual_seed(0)
    config, kind = MODELS["wav2vec2_large"]
    theirs = kind(config).eval()
    move(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    import_model(HuggingFaceFolder(tmp_path / "theirs"), tmp_path / "run")
    run = jf.load(tmp_path / "run")
    lengths = np.array(PLACES)[:, None] * SAMPLES
    rows = np.random.default_rng(0).normal(0.1, 0.3, (2, max(PLACES) * SAMPLES))
    heard = np.arange(rows.shape[1]) < lengths
    mean = (rows * heard).sum(1, keepdims=True) / lengths
    variance = ((rows - mean) ** 2 * heard).sum(1, keepdims=True) / lengths
    values = np.pad((rows - mean) / np.sqrt(variance + 1e-7) * heard, [(0, 0), (0, BEHIND)])
    mask = np.arange(values.shape[1]) < lengths + BEHIND
    with torch.no_grad():
        expected = theirs(
            torch.tensor(values, dtype=torch.float32), torch.tensor(mask.astype(int))
        ).logits.numpy()
    positions = np.broadcast_to(np.arange(max(PLACES)), (2, max(PLACES)))
    real = positions < np.array(PLACES)[:, None]
    logits = run.model.apply({"params": run.params}, rows, positions, real.astype(np.int32))
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=1e-4, rtol=0)


def test_the_published_sizes_have_their_published_numbers_of_parameters() -> None:
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        base = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config())
        config = transformers.HubertConfig(**large, **LARGE, intermediate_size=4096)
        hubert = transformers.HubertForCTC(config)
    counts = [sum(each.numel() for each in model.parameters()) for model in (base, hubert)]
    assert counts == [94_396_320, 315_471_520]
