"""Ministral (Mistral AI, 2024): Mistral with a window in some layers."""

from jaxformer.checkpoint.interop.decoder import (
    gated_ffn,
    heads,
    layer_type,
    model_section,
    rms_norm,
    window_options,
    windows,
)
from jaxformer.checkpoint.interop.families.llama import options, rules
from jaxformer.checkpoint.interop.families.mistral import DEFAULTS as MISTRAL_DEFAULTS
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig
from jaxformer.checkpoint.interop.rope import to_rope
from jaxformer.model.config import ModelConfig

DEFAULTS: Json = {**MISTRAL_DEFAULTS, "layer_types": None}  # a window in every layer


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("attention_bias", False)
    mixer, window = heads(hub), hub.count("sliding_window", None, most=LARGEST)
    found = windows(hub, window, [layer_type(window)])
    return model_section(
        hub,
        mixers=[{**mixer, "window": each} for each in found],
        ffn=gated_ffn(hub, "swiglu"),
        norm=rms_norm(hub, "pre"),
        positions=to_rope(hub, mixer["head_dim"]),
    )


def from_config(model: ModelConfig) -> Json:
    return {**options(model), **window_options(model)}


MINISTRAL = Family(
    "ministral",
    "MinistralForCausalLM",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    nullable=("sliding_window",),
)
