"""Whisper hears and writes as it did in transformers, and goes back there as it came."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from parity.weights import move
from transformers.models.whisper.modeling_whisper import sinusoids

import jaxformer as jf
from jaxformer.batch import Pair, Source
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.generate.beam_search import BeamSearch, write
from tests.runs import assert_same_arrays, saved_arrays

VOCAB, START, END = 40, 2, 1
SECONDS, RATE = 2, 16000
PLACES = 50 * SECONDS
CONFIG = transformers.WhisperConfig(
    vocab_size=VOCAB,
    d_model=24,
    num_mel_bins=20,
    encoder_layers=2,
    encoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_layers=1,
    decoder_attention_heads=2,
    decoder_ffn_dim=40,
    max_source_positions=PLACES,
    max_target_positions=20,
    decoder_start_token_id=START,
    bos_token_id=END,
    eos_token_id=END,
    pad_token_id=END,
    begin_suppress_tokens=None,
)
PUBLISHED = {
    (384, 4, 6): 37_760_640,
    (512, 6, 8): 72_593_920,
    (768, 12, 12): 241_734_912,
}


def greedy(model: torch.nn.Module, features: torch.Tensor, count: int) -> torch.Tensor:
    """The likeliest tokens one by one, without what `generate` does about languages."""
    tokens = torch.full((len(features), 1), START)
    for _ in range(count):
        with torch.no_grad():
            logits = model(features, decoder_input_ids=tokens).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    return tokens[:, 1:]


def test_import_and_export_keep_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.WhisperForConditionalGeneration(CONFIG).eval()
    move(theirs)
    positions = theirs.model.encoder.embed_positions.weight
    positions.data.copy_(sinusoids(*positions.shape))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    extractor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=SECONDS)
    extractor.save_pretrained(tmp_path / "theirs")
    import_model(HuggingFaceFolder(tmp_path / "theirs"), tmp_path / "run")
    run = jf.load(tmp_path / "run")

    random = np.random.default_rng(0)
    recordings = random.normal(0, 0.3, (3, SECONDS * RATE)).astype(np.float32)
    sizes = np.array([SECONDS * RATE - 300, 9000, 500])
    recordings *= np.arange(SECONDS * RATE) < sizes[:, None]
    tokens = random.integers(3, VOCAB, (3, 17))
    tokens[:, 0] = START
    given = [each[:size] for each, size in zip(recordings, sizes, strict=True)]
    features = extractor(given, sampling_rate=RATE, return_tensors="pt").input_features
    written = torch.tensor(tokens)
    with torch.no_grad():
        found = theirs(features, decoder_input_ids=written).logits
    assert np.std(found.numpy()) > 0.1  # or agreement would mean nothing
    real = np.arange(PLACES) < -(-sizes[:, None] // 320)
    source = Source(recordings, np.tile(np.arange(PLACES), (3, 1)), real.astype(np.int32))
    logits = run.model.apply({"params": run.params}, Pair(tokens, source))
    np.testing.assert_allclose(logits, found.numpy(), atol=1e-4, rtol=0)

    one = write(run.model, BeamSearch(1, 0.0, 9), (START,), END, run.params, source)
    others = greedy(theirs, features, 9).numpy()
    for ours, expected in zip(np.asarray(one.tokens), others, strict=True):
        end = list(ours).index(END) + 1 if END in ours else len(ours)
        assert ours[:end].tolist() == expected[:end].tolist()

    export_model(tmp_path / "run", tmp_path / "out")
    back, told = transformers.WhisperForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(told.values()), told
    same = back.state_dict()
    for name, tensor in theirs.state_dict().items():
        if not name.endswith("encoder.embed_positions.weight"):
            assert torch.equal(same[name], tensor), name
    with torch.no_grad():
        again = back.eval()(features, decoder_input_ids=written).logits
    np.testing.assert_allclose(again.numpy(), found.numpy(), atol=1e-5, rtol=0)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert back.config.decoder_start_token_id == START
    prepared = extractor(given, sampling_rate=RATE, return_tensors="pt").input_features
    assert torch.equal(prepared, features)
    import_model(HuggingFaceFolder(tmp_path / "out"), tmp_path / "back")
    assert_same_arrays(*(saved_arrays(tmp_path / name, 0) for name in ("run", "back")))
    assert jf.load_config(tmp_path / "back/config.yaml").model == run.config.model


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_sizes_have_their_published_numbers_of_parameters(size: tuple) -> None:
    d_model, layers, heads = size
    of_both = {
        f"{stack}_{key}": value
        for stack in ("encoder", "decoder")
        for key, value in (
            ("layers", layers),
            ("attention_heads", heads),
            ("ffn_dim", 4 * d_model),
        )
    }
    with torch.device("meta"):
        config = transformers.WhisperConfig(d_model=d_model, **of_both)
        model = transformers.WhisperForConditionalGeneration(config)
    assert sum(each.numel() for each in model.parameters()) == PUBLISHED[size]
