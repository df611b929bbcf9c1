"""Llama (Touvron et al., 2023, arXiv:2302.13971), Llama 2 and 3, and SmolLM, which has its shape.

Supports every scaling of RoPE, with or without biases and tied embeddings.
"""

from typing import Any

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    ffn_of,
    first_layer,
    gated_ffn,
    heads,
    layer_rules,
    model_rules,
    model_section,
    rms_norm,
    sizes,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS, from_rope, to_rope
from jaxformer.checkpoint.interop.rules import Rule
from jaxformer.model.config import ModelConfig

DEFAULTS: Json = {
    **ROPE_DEFAULTS,
    "num_key_value_heads": None,  # as many as num_attention_heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    bias = hub.flag("attention_bias")
    return section(hub, {**heads(hub), "qkv_bias": bias, "output_bias": bias})


def section(
    hub: HubConfig,
    mixer: Json,
    *,
    ffn: Json | None = None,
    norm: Json | None = None,
    positions: Json | None = None,
    **parts: Any,
) -> Json:
    """The model section of a model whose layers are all alike, as Llama's are, with a family's own
    `parts`."""
    return model_section(
        hub,
        mixers=[mixer],
        ffn=ffn or gated_ffn(hub, "swiglu"),
        norm=norm or rms_norm(hub, "pre"),
        positions=positions or to_rope(hub, mixer["head_dim"]),
        **parts,
    )


def from_config(model: ModelConfig) -> Json:
    layer = first_layer(model)
    bias = {"attention_bias": attention_of(layer).qkv_bias, "mlp_bias": ffn_of(layer).bias}
    return {**options(model), **bias}


def options(model: ModelConfig, d_hidden: int | None = None) -> Json:
    """The keys of config.json for such a model; for `d_hidden` see `sizes`."""
    positions = from_rope(first_layer(model).positions)
    return {**sizes(model, d_hidden), **positions, "hidden_act": "silu"}


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [layer_rules(layer) for layer in model.layers()])


LLAMA = Family("llama", "LlamaForCausalLM", to_config, from_config, rules, DEFAULTS)
