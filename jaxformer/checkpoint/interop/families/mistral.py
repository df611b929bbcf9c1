"""Mistral (Jiang et al., 2023, arXiv:2310.06825): Llama with a window over every layer."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    first_layer,
    gated_ffn,
    heads,
    model_section,
    rms_norm,
    sizes,
)
from jaxformer.checkpoint.interop.families.llama import rules
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS, from_rope, to_rope
from jaxformer.model.config import ModelConfig

DEFAULTS: Json = {
    **ROPE_DEFAULTS,
    "num_key_value_heads": 8,
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "sliding_window": 4096,  # null: no window
}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("attention_bias", False)
    mixer = {**heads(hub), "window": hub.count("sliding_window", None, most=LARGEST)}
    return model_section(
        hub,
        mixers=[mixer],
        ffn=gated_ffn(hub, "swiglu"),
        norm=rms_norm(hub, "pre"),
        positions=to_rope(hub, mixer["head_dim"]),
    )


def from_config(model: ModelConfig) -> Json:
    layer = first_layer(model)
    return {
        **sizes(model),
        **from_rope(layer.positions),
        "hidden_act": "silu",
        "sliding_window": attention_of(layer).window,
    }


MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    nullable=("sliding_window",),
)
