"""GGUF metadata as Hugging Face's config.json."""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from jaxformer.checkpoint.interop.gguf_reader import Metadata
from jaxformer.errors import UserError, did_you_mean
from jaxformer.model.positions import Llama3ScalingConfig, RoPEConfig, rope_frequencies


class Architecture(NamedTuple):
    """Hugging Face's name, and whether a GGUF file rotates features 2i and 2i + 1 together, where
    Hugging Face rotates i and i + size/2."""

    model_type: str
    architecture: str
    interleaved: bool


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", interleaved=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", interleaved=False),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", interleaved=False),
}

KEYS = (
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
)


def architecture_of(metadata: Metadata) -> Architecture:
    """The architecture that the file names.

    Raises:
        UserError: it cannot be imported.
    """
    name = metadata.require("general.architecture", str)
    if name not in ARCHITECTURES:
        raise UserError(
            f"{metadata.path}: general.architecture '{name}' cannot be imported from GGUF; "
            f"allowed: {', '.join(ARCHITECTURES)}.{did_you_mean(name, ARCHITECTURES)} For others, "
            f"import the Hugging Face folder"
        )
    return ARCHITECTURES[name]


def hugging_face_config(
    metadata: Metadata, tensors: Collection[str], vocab_size: int, rope_factors: np.ndarray | None
) -> dict[str, Any]:
    """The config.json of a GGUF file.

    Args:
        tensors: Hugging Face's names of the tensors in the file.
        vocab_size: the number of rows of the embedding.
        rope_factors: what every rotated pair's frequency is divided by [head_dim / 2], where the
            file holds that as a tensor (Llama 3.1 and later).

    Raises:
        UserError: a key is missing, of a wrong kind, or has no equivalent in config.json.
    """
    kind = architecture_of(metadata)
    name = metadata.require("general.architecture", str)
    _refuse_unknown(metadata, name)
    d_model = metadata.require(f"{name}.embedding_length", int)
    num_heads = metadata.require(f"{name}.attention.head_count", int)
    head_dim = metadata.get(f"{name}.attention.key_length", int, d_model // max(num_heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        size = metadata.get(f"{name}.{key}", int, head_dim)
        if size != head_dim:
            raise UserError(
                f"{metadata.path}: {name}.{key} is {size}, but a head's size is {head_dim}; only "
                f"equal ones can be imported"
            )
    base = _decimal(metadata.get(f"{name}.rope.freq_base", float, 10000.0))
    config = {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "intermediate_size": metadata.require(f"{name}.feed_forward_length", int),
        "num_hidden_layers": metadata.require(f"{name}.block_count", int),
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata.get(f"{name}.attention.head_count_kv", int, num_heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": metadata.require(f"{name}.context_length", int),
        "rms_norm_eps": _decimal(
            metadata.require(f"{name}.attention.layer_norm_rms_epsilon", float)
        ),
        "rope_theta": base,
        "rope_scaling": _rope_scaling(metadata, name, head_dim, base, rope_factors),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    for role in ("bos", "eos"):
        config[f"{role}_token_id"] = metadata.get(f"tokenizer.ggml.{role}_token_id", int)
    biases = {"attention_bias": "self_attn.o_proj.bias", "mlp_bias": "mlp.up_proj.bias"}
    found = {key for key, name in biases.items() if f"model.layers.0.{name}" in tensors}
    return config | dict.fromkeys(found, True)


def _refuse_unknown(metadata: Metadata, name: str) -> None:
    unknown = metadata.under(f"{name}.") - {f"{name}.{key}" for key in KEYS}
    if unknown:
        raise UserError(
            f"{metadata.path}: its metadata says {', '.join(sorted(unknown))}, which the import "
            f"does not know and would ignore; import the Hugging Face folder"
        )


def _decimal(value: float) -> float:
    """GGUF's float32 as the decimal that was meant: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(
    metadata: Metadata, name: str, head_dim: int, base: float, factors: np.ndarray | None
) -> dict[str, Any] | None:
    # llama.cpp's defaults: linear, and a factor of 0, which stands for none.
    kind = metadata.get(f"{name}.rope.scaling.type", str, "linear")
    factor = metadata.get(f"{name}.rope.scaling.factor", float, 0.0)
    if factors is not None:
        if kind != "none" and factor != 0:
            raise UserError(
                f"{metadata.path}: it has {name}.rope.scaling.factor {factor:g} beside "
                f"rope_freqs.weight, and only one of them can be imported; import the Hugging Face "
                f"folder"
            )
        return _llama3_scaling(metadata, head_dim, base, factors)
    if kind == "none" or (kind == "linear" and factor == 0):
        return None
    if kind not in ("linear", "yarn"):
        raise UserError(
            f"{metadata.path}: {name}.rope.scaling.type '{kind}' cannot be imported; allowed: "
            f"none, linear, yarn"
        )
    scaling = {"rope_type": kind, "factor": metadata.require(f"{name}.rope.scaling.factor", float)}
    if kind == "yarn":
        context = metadata.require(f"{name}.context_length", int)
        length = metadata.get(f"{name}.rope.scaling.original_context_length", int, context)
        scaling["original_max_position_embeddings"] = length
    return scaling


def _llama3_scaling(
    metadata: Metadata, head_dim: int, base: float, factors: np.ndarray
) -> dict[str, Any]:
    """Llama 3's rule, if it gives these `factors`. The file holds no parameters of the rule: those
    of Meta's models are tried."""
    scaling = Llama3ScalingConfig(factor=float(factors.max()), original_max_length=8192)
    plain, _ = rope_frequencies(RoPEConfig(base=base), head_dim)
    scaled, _ = rope_frequencies(RoPEConfig(base=base, scaling=scaling), head_dim)
    if factors.shape != plain.shape or not np.allclose(factors, plain / scaled, rtol=1e-4, atol=0):
        raise UserError(
            f"{metadata.path}: its rope_freqs.weight are not those of Llama 3 (factor "
            f"{scaling.factor:g}, trained at 8192); import the Hugging Face folder"
        )
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_max_length,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
    }
