"""OLMo 2 (2024, arXiv:2501.00656): norms after the sub-layers, and of all queries and all keys."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    first_layer,
    heads,
    layer_rules,
    model_rules,
    rms_norm,
)
from jaxformer.checkpoint.interop.families.llama import options, section
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS
from jaxformer.checkpoint.interop.rules import Rule
from jaxformer.model.config import ModelConfig

NORMS = {"post_attention_layernorm": "mixer_norm", "post_feedforward_layernorm": "ffn_norm"}


DEFAULTS: Json = {
    **ROPE_DEFAULTS,
    "num_key_value_heads": None,  # as many as num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    return section(hub, attention(hub), norm=rms_norm(hub, "after"))


def attention(hub: HubConfig) -> Json:
    """Attention with norms of all queries and of all keys."""
    bias, eps = hub.flag("attention_bias"), hub.number("rms_norm_eps")
    norm = {"qk_norm": "width", "qk_norm_eps": eps}
    return {**heads(hub), "qkv_bias": bias, "output_bias": bias, **norm}


def from_config(model: ModelConfig) -> Json:
    return {**options(model), "attention_bias": attention_of(first_layer(model)).qkv_bias}


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [layer_rules(layer, NORMS) for layer in model.layers()])


OLMO2 = Family("olmo2", "Olmo2ForCausalLM", to_config, from_config, rules, DEFAULTS)
