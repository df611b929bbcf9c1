"""What is imported says what it said in transformers, and goes back there as it came."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from parity.imported import MODELS, VOCAB
from parity.weights import move

import jaxformer as jf
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.generate.decode import Decoder
from jaxformer.generate.sampling import Sampling
from tests.runs import assert_same_arrays, saved_arrays

LENGTH = 67  # longer than windows and than the original lengths of scaled positions
PROMPT, NEW = 20, 24  # a prompt that windows and shorter original lengths end within


def their_logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens), use_cache=False).logits.numpy()


def their_tokens(model: transformers.PreTrainedModel, prompts: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        tokens = model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(prompts.shape, dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=VOCAB - 1,
        )
    return tokens[:, PROMPT:].numpy()


@pytest.mark.parametrize("name", MODELS)
def test_import_and_export_keep_the_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(MODELS[name]).eval()
    move(theirs)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    import_model(HuggingFaceFolder(tmp_path / "theirs"), tmp_path / "run")
    run = jf.load(tmp_path / "run")

    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
    expected = their_logits(theirs, tokens)
    logits = jax.jit(run.model.apply)({"params": run.params}, tokens)
    assert np.std(expected) > 0.1  # or agreement would mean nothing
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)

    prompts = tokens[:, :PROMPT]
    decoder = Decoder.of(run.model, run.params, eos_id=VOCAB - 1)
    pieces = decoder.decode(prompts.tolist(), max_new_tokens=NEW, sampling=Sampling(temperature=0))
    np.testing.assert_array_equal(
        np.concatenate(list(pieces), axis=1), their_tokens(theirs, prompts)
    )

    options = export_model(tmp_path / "run", tmp_path / "ours")
    assert options["model_type"] == MODELS[name].model_type
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_allclose(their_logits(back, tokens), expected, atol=1e-5, rtol=0)
    import_model(HuggingFaceFolder(tmp_path / "ours"), tmp_path / "again")
    assert_same_arrays(saved_arrays(tmp_path / "run", 0), saved_arrays(tmp_path / "again", 0))
    assert jf.load_config(tmp_path / "again/config.yaml").model == run.config.model
