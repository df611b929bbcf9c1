"""What cannot be imported is answered with one message, and leaves nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxformer.checkpoint.interop.folder import ADAPTER, INDEX
from jaxformer.cli import main
from tests.checkpoint.interop.models import CONFIG, llama_tensors, write_model, write_tensors

Json = dict[str, Any]


def config(**changes: Any) -> Callable[[Path], None]:
    """A whole model, but for some keys of its config.json."""
    return lambda folder: (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def text(content: str | bytes, name: str = "config.json") -> Callable[[Path], None]:
    """A whole model, but for what one of its files says."""
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(raw)


def only(name: str) -> Callable[[Path], None]:
    """Weights in another file than safetensors."""
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def tensors(**changes: np.ndarray) -> Callable[[Path], None]:
    """Some more tensors, where __ stands for a dot."""
    more = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return lambda folder: write_tensors(folder / "model.safetensors", llama_tensors() | more)


def adapter(folder: Path) -> None:
    for file in list(folder.iterdir()):
        file.unlink()
    (folder / ADAPTER).write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 8}))
    write_tensors(folder / "adapter_model.safetensors", {"a": np.ones(4, np.float32)})


def index_without_shards(folder: Path) -> None:
    only("model-00001-of-00003.safetensors")(folder)
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    index = {str(number): name for number, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))


ROPE: Json = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE: Json = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0, "2"]}
TEXT: Json = {"model_type": "llama", "hidden_size": 16}

BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "an adapter": (adapter, "an adapter of PEFT (adapter_config.json), trained on org/base"),
    "an adapter beside a model": (text("{}", ADAPTER), "trained on a model that it does not name"),
    "an adapter's file that is none": (text("[", ADAPTER), "adapter_config.json is not JSON"),
    "adapters among the weights": (
        tensors(model__layers__0__self_attn__q_proj__lora_A__weight=np.ones((2, 16), np.float32)),
        "model.layers.0.self_attn.q_proj.lora_A.weight, a part of an adapter of PEFT",
    ),
    "a pickle": (only("pytorch_model.bin"), "weights in pytorch_model.bin, a pickle"),
    "the index of pickles": (only("pytorch_model.bin.index.json"), "a pickle"),
    "weights of Flax": (only("flax_model.msgpack"), "it holds only config.json, flax_model.msgpa"),
    "shards without an index": (only("model-00002-of-00003.safetensors"), "00003-of-00003.safet"),
    "an index without shards": (index_without_shards, "model-00003-of-00003.safetensors are miss"),
    "an encoder and a decoder": (config(is_encoder_decoder=True), "is_encoder_decoder true"),
    "a model of images and text": (
        config(model_type="llava", text_config=TEXT, vision_config={"model_type": "clip"}),
        "several models in one (text_config 'llama', vision_config 'clip')",
    ),
    "text_config in a known family": (config(text_config=TEXT), "text_config 'llama'"),
    "a model of images": (config(model_type="swin"), "model_type 'swin', which cannot be imported"),
    "a model of classes": (
        config(architectures=["LlamaForSequenceClassification"]),
        "['LlamaForSequenceClassification'], which gives classes",
    ),
    "GPTQ": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "are quantized"),
    "packed weights": (tensors(model__norm__qweight=np.ones(4, np.int32)), "left over model.norm"),
    "a list": (text("[1, 2]"), "config.json is not a JSON object"),
    "nothing": (text(""), "config.json is not JSON"),
    "other bytes": (text(b"\x1f\x8b\x08\x00\xff"), "config.json is not JSON"),
    "deep nesting": (text('{"a":' * 99_999 + "1" + "}" * 99_999), "nested too deeply"),
    "nesting that is read": (
        text(json.dumps(CONFIG)[:-1] + ',"a":' + "[" * 700 + "]" * 700 + "}"),
        "config.json has options that are not supported for llama: a [[[[...]]]];",
    ),
    "5,000 digits": (text('{"hidden_size": 1' + "0" * 5000 + "}"), "more than 4,300 digits"),
    "4,000 digits": (config(hidden_size=10**4000), "has hidden_size 1000"),
    "a size beyond all": (config(hidden_size=2**40), "has hidden_size 1099511627776; allowed"),
    "the largest sizes": (
        config(hidden_size=2**24, head_dim=4096, vocab_size=2**24, intermediate_size=2**24),
        "shape     model.embed_tokens.weight: [300, 16], not [16777216, 16777216]",
    ),
    "a switch that is null": (
        config(tie_word_embeddings=None),
        "tie_word_embeddings null, which transformers refuses for llama",
    ),
    "many layers": (config(num_hidden_layers=10**9), "num_hidden_layers 1000000000; allowed"),
    "no number": (text(json.dumps(CONFIG)[:-1] + ',"rms_norm_eps": NaN}'), "rms_norm_eps nan"),
    "an infinite number": (
        text(json.dumps(CONFIG)[:-1] + ',"rope_theta": 1e999}'),
        "rope_theta inf",
    ),
    "a size in words": (config(intermediate_size="wide"), "intermediate_size 'wide'; allowed"),
    "a switch in words": (config(attention_bias="no"), "attention_bias 'no'; allowed: true or f"),
    "a list for a size": (config(head_dim=[4]), "head_dim [4]; allowed: a positive whole number"),
    "no family": (text("{}"), "model_type None"),
    "a list for a family": (config(model_type=["llama"]), "model_type ['llama']"),
    "a list for a section": (config(rope_scaling=[1]), "rope_scaling [1]; allowed: keys"),
    "a list for a type": (config(rope_scaling={"type": []}), "rope_scaling has rope_type []"),
    "text for a factor": (
        config(rope_scaling={**ROPE, "factor": "8"}),
        "rope_scaling has factor '8'",
    ),
    "factors for some pairs": (config(rope_scaling=LONGROPE), "has 1 numbers in short_factor"),
    "an odd head": (config(head_dim=5), "rotates 5 of the 5 features of a head"),
    "a wide head": (config(hidden_size=2**24), "rotates 4.1943e+06 of the 4194304 features"),
    "heads without features": (config(num_attention_heads=32), "head_dim 0; allowed"),
    "text for layer_types": (
        config(model_type="qwen2", layer_types="full_attention"),
        "layer_types 'full_attention'; allowed: a list",
    ),
    "a layer of another type": (
        config(model_type="qwen2", layer_types=["full_attention", "chunked_attention", [1]]),
        "layer_types with 'chunked_attention'; allowed: full_attention, sliding_attention",
    ),
    "no block": (
        config(model_type="recurrent_gemma", hidden_act=None, block_types=[]),
        "block_types []; allowed: a list",
    ),
    "a rank in words": (config(model_type="mamba", time_step_rank="high"), "time_step_rank 'high'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_source_that_cannot_be_imported_is_answered_with_one_message(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, expected = BAD[name]
    spoil(write_model(tmp_path / "model"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["import", str(tmp_path / "model"), str(tmp_path / "run")]) == 2
    told = capsys.readouterr()
    assert expected in told.err
    assert told.err.count("error:") == 1
    assert "Traceback" not in told.err
    assert told.out == ""
    assert sorted(tmp_path.rglob("*")) == before
