"""A model of speech in Hugging Face's layout becomes a run that transcribes, and comes out as it
went in."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxformer as jf
from jaxformer.checkpoint.interop.convolution import ConvolutionKernel
from jaxformer.checkpoint.interop.ctc_tokenizer import to_vocabulary
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.families import FAMILIES
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.checkpoint.interop.table import Table
from jaxformer.checkpoint.interop.weight_norm import WeightNorm
from jaxformer.cli import main
from jaxformer.data.character_tokenizer import CharacterTokenizer
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from tests.checkpoint.interop.models import write_tensors
from tests.data.recordings import encoded

Json = dict[str, Any]
VOCAB = {each: at for at, each in enumerate(("<pad>", "<s>", "</s>", "<unk>", "|", *"ETA"))}
CONFIG: Json = {
    "model_type": "wav2vec2",
    "architectures": ["Wav2Vec2ForCTC"],
    "vocab_size": len(VOCAB),
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "conv_dim": [4] * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "pad_token_id": 0,
}
PREPROCESSOR: Json = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "sampling_rate": 16000,
    "padding_value": 0.0,
    "do_normalize": True,
    "padding_side": "right",
    "return_attention_mask": False,
}
TOKENIZER = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "do_lower_case": False}
LENGTHS, DIRECTIONS = "parametrizations.weight.original0", "parametrizations.weight.original1"


def speech_tensors() -> dict[str, np.ndarray]:
    """As transformers writes them; the lengths of weight norm are no norms."""
    family = FAMILIES["wav2vec2"]
    table = Table(family, ModelConfig.model_validate(family.read(CONFIG)))
    random = np.random.default_rng(0)
    return {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for rule in table.rules
        for name, shape in table.stored(rule).items()
    }


def write_speech(
    folder: Path,
    tensors: dict[str, np.ndarray] | None = None,
    vocab: Json | None = VOCAB,
    **settings: Any,
) -> HuggingFaceFolder:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    if vocab is not None:
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER | settings))
    write_tensors(folder / "model.safetensors", tensors or speech_tensors())
    return HuggingFaceFolder(folder)


def test_a_model_of_speech_comes_out_as_it_went_in(tmp_path: Path) -> None:
    """With the names of older files, an embedding of hidden places and a quantiser."""
    tensors = speech_tensors()
    stored = {
        name.replace(LENGTHS, "weight_g").replace(DIRECTIONS, "weight_v"): tensor
        for name, tensor in tensors.items()
    }
    stored["wav2vec2.masked_spec_embed"] = np.ones(8, np.float32)
    stored["quantizer.codevectors"] = np.ones((1, 4, 2), np.float32)
    config = import_model(write_speech(tmp_path / "model", stored), tmp_path / "run")
    assert config.train.objective.blank == 0
    assert config.data.audio.samples_per_place == 320
    export_model(tmp_path / "run", tmp_path / "out")
    written = HuggingFaceFolder(tmp_path / "out")
    assert written.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        if not name.endswith((LENGTHS, DIRECTIONS)):
            np.testing.assert_array_equal(written.read(name), tensor)
    assert written.preprocessor == PREPROCESSOR
    assert json.loads((tmp_path / "out/vocab.json").read_text()) == VOCAB
    assert written.config["pad_token_id"] == 0
    import_model(written, tmp_path / "again")
    one, other = (jf.load(tmp_path / name) for name in ("run", "again"))
    assert one.config.model == other.config.model
    assert one.tokenizer.fingerprint == other.tokenizer.fingerprint
    kernels = [run.params["position_convolution"]["kernel"] for run in (one, other)]
    np.testing.assert_array_equal(*kernels)


def test_an_imported_model_of_speech_transcribes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = speech_tensors()
    tensors["lm_head.weight"] *= 0
    tensors["lm_head.bias"] = np.eye(len(VOCAB), dtype=np.float32)[VOCAB["T"]]  # T, always
    write_speech(tmp_path / "model", tensors)
    assert main(["import", str(tmp_path / "model"), str(tmp_path / "run")]) == 0
    assert "transcribe: jaxformer predict" in capsys.readouterr().out
    (tmp_path / "one.wav").write_bytes(encoded(np.zeros(700, np.float32), 16000))
    words = [str(tmp_path / "one.wav"), "data.sequence_length=4", "--json"]
    assert main(["predict", str(tmp_path / "run"), *words]) == 0
    [said] = json.loads(capsys.readouterr().out)
    assert said["text"] == "T"


def test_an_encoder_alone_begins_with_a_head_of_zeros(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file of a Wav2Vec2Model, whose names have no prefix, without a tokenizer."""
    tensors = {
        name.removeprefix("wav2vec2."): tensor
        for name, tensor in speech_tensors().items()
        if not name.startswith("lm_head")
    }
    import_model(write_speech(tmp_path / "model", tensors, vocab=None), tmp_path / "run")
    said = capsys.readouterr().err
    assert "no lm_head.weight and no lm_head.bias: they start at zero" in said
    assert "data.tokenizer=characters" in said
    np.testing.assert_array_equal(jf.load(tmp_path / "run").params["head_bias"], 0)
    export_model(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out/vocab.json").exists()


def test_weight_norm_gives_back_the_same_numbers_whatever_they_are() -> None:
    """Lengths from 1e-20 to 1e15, and a place of zeros."""
    random = np.random.default_rng(0)
    scales = np.logspace(-20, 15, 40, dtype=np.float32)[:, None, None]
    kernel = (scales * random.normal(size=(40, 3, 4))).astype(np.float32)
    kernel[7] = 0
    rule = WeightNorm("v", ("kernel",), ConvolutionKernel(), beside=("g",))
    directions, lengths = rule.to_theirs([kernel])
    assert [each.shape for each in (directions, lengths)] == rule.shapes([kernel.shape])
    np.testing.assert_allclose(
        lengths[0, 0], np.linalg.norm(kernel.astype(np.float64), axis=(1, 2)), rtol=1e-7
    )
    # As a file is read: in another order in memory.
    theirs = [np.ascontiguousarray(each) for each in (directions, lengths)]
    np.testing.assert_array_equal(rule.to_ours(theirs, [kernel.shape])[0], kernel)
    [twice] = rule.to_ours([directions, 2 * lengths], [kernel.shape])
    np.testing.assert_array_equal(twice, 2 * kernel)


def test_a_tokenizer_of_characters_is_written_with_the_blank_last() -> None:
    vocab, settings = to_vocabulary(CharacterTokenizer("characters", "ab "))
    assert vocab == {"a": 0, "b": 1, "|": 2, "<unk>": 3, "<pad>": 4}
    assert settings["eos_token"] is None
    assert to_vocabulary(CharacterTokenizer("characters", "a|")) is None


@pytest.mark.parametrize(
    ("vocab", "settings", "preprocessor", "message"),
    [
        (VOCAB, {}, {"do_normalize": False}, "do_normalize False"),
        (VOCAB, {}, {"feature_size": 80}, "feature_size 80"),
        (VOCAB, {"do_lower_case": True}, {}, "do_lower_case True"),
        (VOCAB, {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}, {}, "tokenizer_class 'Wav2V"),
        (VOCAB, {"unk_token": "[UNK]"}, {}, "vocab.json has no [UNK], which is its unk_token"),
        (VOCAB, {"word_delimiter_token": "<s>"}, {}, "word_delimiter_token '<s>'; allowed: one"),
        ({"eng": VOCAB}, {}, {}, "allowed: a number for each token of one language"),
        (VOCAB | {"O": 8}, {}, {}, "its tokenizer has 9 ids"),
    ],
)
def test_what_would_hear_or_write_otherwise_is_refused(
    tmp_path: Path, vocab: Json, settings: Json, preprocessor: Json, message: str
) -> None:
    source = write_speech(tmp_path / "model", vocab=vocab, **settings)
    source.preprocessor |= preprocessor
    with pytest.raises(UserError, match=re.escape(message)):
        import_model(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()
