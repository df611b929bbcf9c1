"""T5 reads and writes as it did in transformers, and goes back there as it came."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from parity.weights import move

import jaxformer as jf
from jaxformer.batch import Pair, Source
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.generate.beam_search import BeamSearch, write
from tests.runs import assert_same_arrays, saved_arrays

VOCAB, START, END = 40, 0, 1
SIZES = {
    "vocab_size": VOCAB,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 4,
    # So few that rows of 20 tokens reach the buckets of several distances, and the last one.
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": START,
}
MODELS = {"relu": {}, "gated": {"feed_forward_proj": "gated-gelu"}}


@pytest.mark.parametrize("name", MODELS)
def test_import_and_export_keep_the_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(**SIZES, **MODELS[name])
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    move(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    import_model(HuggingFaceFolder(tmp_path / "theirs"), tmp_path / "run")
    run = jf.load(tmp_path / "run")

    random = np.random.default_rng(0)
    source, tokens = random.integers(2, VOCAB, (3, 20)), random.integers(2, VOCAB, (3, 17))
    real = np.arange(20) < np.array([[20], [13], [4]])
    tokens[:, 0] = START
    with torch.no_grad():
        given = (torch.tensor(each) for each in (source, real.astype(int), tokens))
        ids, mask, written = given
        found = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=written)
        greedy = theirs.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False)
    expected = found.logits.numpy()
    assert np.std(expected) > 0.1  # or agreement would mean nothing
    read = Source(source, np.tile(np.arange(20), (3, 1)), real.astype(int))
    logits = run.model.apply({"params": run.params}, Pair(tokens, read))
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)

    one = write(run.model, BeamSearch(1, 0.0, 9), (START,), END, run.params, read)
    for ours, others in zip(np.asarray(one.tokens), greedy.numpy()[:, 1:], strict=True):
        end = list(ours).index(END) + 1 if END in ours else len(ours)
        assert ours[:end].tolist() == others[:end].tolist()

    export_model(tmp_path / "run", tmp_path / "out")
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(found.logits, again(ids, mask, decoder_input_ids=written).logits)
    assert again.config.decoder_start_token_id == START
    import_model(HuggingFaceFolder(tmp_path / "out"), tmp_path / "back")
    assert_same_arrays(*(saved_arrays(tmp_path / name, 0) for name in ("run", "back")))


def test_a_head_of_its_own_is_not_scaled(tmp_path: Path) -> None:
    """As in T5 1.1, whose files say that embeddings are not tied."""
    from jaxformer.checkpoint.interop.families import FAMILIES

    read = FAMILIES["t5"].read(SIZES | {"model_type": "t5", "tie_word_embeddings": False})
    assert (read["tie_embeddings"], read["logit_scale"]) == (False, 1.0)
