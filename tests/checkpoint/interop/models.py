"""Small models as Hugging Face writes them, made without torch: config.json, tensors, tokenizer."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers

from jaxformer.checkpoint.interop.safetensors import NAMES

Json = dict[str, Any]

VOCAB = 300
CONFIG: Json = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 257,
}


def llama_tensors(config: Json = CONFIG) -> dict[str, np.ndarray]:
    d_model, d_hidden = config["hidden_size"], config["intermediate_size"]
    head_dim = d_model // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * head_dim
    layer = {
        "input_layernorm": (d_model,),
        "self_attn.q_proj": (d_model, d_model),
        "self_attn.k_proj": (keys, d_model),
        "self_attn.v_proj": (keys, d_model),
        "self_attn.o_proj": (d_model, d_model),
        "post_attention_layernorm": (d_model,),
        "mlp.gate_proj": (d_hidden, d_model),
        "mlp.up_proj": (d_hidden, d_model),
        "mlp.down_proj": (d_model, d_hidden),
    }
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], d_model)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (d_model,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d_model)
    random = np.random.default_rng(0)
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def write_tensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
    write_raw(file, json.dumps(header), b"".join(tensor.tobytes() for tensor in tensors.values()))


def write_raw(file: Path, header: str, body: bytes) -> None:
    text = header.encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def write_tokenizer(folder: Path) -> None:
    """Letters, and the end of text."""
    vocab = {chr(97 + index): index for index in range(26)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))


def write_model(
    folder: Path, config: Json = CONFIG, tensors: dict[str, np.ndarray] | None = None
) -> Path:
    """A whole folder; its weights in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tensors(folder / "model.safetensors", tensors or llama_tensors(config))
    write_tokenizer(folder)
    return folder


def as_bfloat16(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
