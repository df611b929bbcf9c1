"""Mistral (Jiang et al., 2023, arXiv:2310.06825): Llama with a window over every layer."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    first_layer,
    heads,
)
from jaxformer.checkpoint.interop.families.llama import options, rules, section
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS
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
    window = hub.count("sliding_window", None, most=LARGEST)
    return section(hub, {**heads(hub), "window": window})


def from_config(model: ModelConfig) -> Json:
    return {**options(model), "sliding_window": attention_of(first_layer(model)).window}


MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    nullable=("sliding_window",),
)
