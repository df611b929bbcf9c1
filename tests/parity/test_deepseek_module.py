"""The layers that DeepSeek-V3 stores above its own are further modules, and draft as there."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from parity.imported import MODELS, VOCAB
from parity.weights import move
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import MtpModel

import jaxformer as jf
from jaxformer.checkpoint.interop.exporting import export_model
from jaxformer.checkpoint.interop.folder import HuggingFaceFolder
from jaxformer.checkpoint.interop.importing import import_model
from jaxformer.generate.decode import Decoder
from jaxformer.generate.drafts import FurtherPredictions
from jaxformer.generate.sampling import Sampling
from jaxformer.generate.speculative import SpeculativeDecoder
from jaxformer.model.rows import RowInfo
from tests.runs import assert_same_arrays, saved_arrays

LENGTH = 12


def logits_of_module(model: torch.nn.Module, module: MtpModel, tokens: np.ndarray) -> np.ndarray:
    """The logits of the token two places further, per token but the last."""
    with torch.no_grad():
        ids = torch.tensor(tokens)
        states = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
        embedded = model.get_input_embeddings()(ids[:, 1:])
        places = torch.arange(1, LENGTH)[None]
        mask = torch.full((LENGTH - 1, LENGTH - 1), -torch.inf).triu(1)[None, None]
        made = module.layers[0](
            embedded, states, model.model.rotary_emb(embedded, places), mask, places, None
        )
        return model.lm_head(made).numpy()


def write(folder: Path, model: torch.nn.Module, module: MtpModel) -> None:
    """A checkpoint as DeepSeek stores it, with the module's own copies of embedding and head."""
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    part = folder.with_name("module")
    layer = module.layers[0]
    beside = transformers.AutoModelForCausalLM.from_config(model.config)
    number, last = model.config.num_hidden_layers, model.config.num_hidden_layers - 1
    beside.model.layers[last].load_state_dict(layer.mtp_block.state_dict())
    beside.save_pretrained(part)  # which stores experts one by one
    own = {
        "enorm.weight": layer.enorm.weight,
        "hnorm.weight": layer.hnorm.weight,
        "eh_proj.weight": layer.eh_proj.weight,
        "shared_head.norm.weight": layer.post_norm.weight,
        "embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
        "shared_head.head.weight": tensors["lm_head.weight"].clone(),
    }
    prefix = f"model.layers.{last}."
    for name, tensor in load_file(part / "model.safetensors").items():
        if name.startswith(prefix):
            own[name.removeprefix(prefix)] = tensor
    tensors |= {f"model.layers.{number}.{name}": x.detach() for name, x in own.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_stored_module_predicts_as_in_transformers_drafts_and_goes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MODELS["deepseek_v3"]
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    move(theirs)
    module = MtpModel(theirs, 1).eval()
    for tensor in module.layers.state_dict().values():  # torch leaves them as memory was
        tensor.fill_(float(tensor.ndim == 1))
    move(module.layers)
    write(tmp_path / "theirs", theirs, module)

    import_model(HuggingFaceFolder(tmp_path / "theirs"), tmp_path / "run")
    run = jf.load(tmp_path / "run")
    assert run.config.model.further.count == 1
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
    rows = RowInfo(jnp.arange(LENGTH)[None].repeat(2, 0), jnp.ones((2, LENGTH), jnp.int32))

    def predict(model: object) -> jax.Array:
        made, _ = model.predict_further(model.trunk(tokens)[0], [(np.roll(tokens, -1, 1), rows)])
        return model.outputs.logits(model.head(), made[0])

    logits = jax.jit(lambda params: run.model.apply({"params": params}, method=predict))(run.params)
    expected = logits_of_module(theirs, module, tokens)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(logits[:, :-1], expected, atol=1e-4, rtol=0)

    def text(decoder: Decoder) -> list:
        pieces = decoder.decode(tokens.tolist(), max_new_tokens=8, sampling=Sampling(temperature=0))
        return np.concatenate(list(pieces), axis=1).tolist()

    plain = Decoder.of(run.model, run.params, eos_id=VOCAB - 1)
    draft = FurtherPredictions.of(plain.model)
    assert text(plain) == text(SpeculativeDecoder.from_decoder(plain, draft, "further"))
    export_model(tmp_path / "run", tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["num_nextn_predict_layers"] == 1
    import_model(HuggingFaceFolder(tmp_path / "ours"), tmp_path / "again")
    assert_same_arrays(saved_arrays(tmp_path / "run", 0), saved_arrays(tmp_path / "again", 0))
