"""Granite 3 (IBM, 2024): Llama with multipliers of embeddings, attention logits, what sub-layers
add, and logits."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    embedding_scale,
    first_layer,
    heads,
    root,
    usual_scale,
)
from jaxformer.checkpoint.interop.families.llama import DEFAULTS as LLAMA_DEFAULTS
from jaxformer.checkpoint.interop.families.llama import from_config as from_llama
from jaxformer.checkpoint.interop.families.llama import rules, section
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.residuals import PlainConfig

MULTIPLIERS: Json = {
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,  # divides the logits
}
DEFAULTS: Json = {
    **{key: value for key, value in LLAMA_DEFAULTS.items() if key != "head_dim"},
    **MULTIPLIERS,
}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    return section(hub, attention(hub), **multipliers(hub))


def attention(hub: HubConfig) -> Json:
    """Attention with a scale of its own."""
    bias, scale = hub.flag("attention_bias"), hub.number("attention_multiplier")
    return {**heads(hub), "qkv_bias": bias, "output_bias": bias, "scale": scale}


def multipliers(hub: HubConfig) -> Json:
    """The parts of the model section that scale embeddings, addends and logits."""
    embeddings = hub.number("embedding_multiplier")
    return {
        "scale_embeddings": False if embeddings == 1 else embeddings,
        "residual": {"kind": "plain", "multiplier": hub.number("residual_multiplier")},
        "logit_scale": hub.number("logits_scaling") ** -1,
    }


def from_config(model: ModelConfig) -> Json:
    return {**from_llama(model), **multiplier_options(model)}


def multiplier_options(model: ModelConfig) -> Json:
    """The keys of config.json for a model's multipliers.

    Raises:
        UserError: sub-layers are not plainly added.
    """
    if not isinstance(model.residual, PlainConfig):
        raise UserError(f"a residual '{model.residual.kind}', where this family has plain")
    mixer = attention_of(first_layer(model))
    return {
        "embedding_multiplier": embedding_scale(model),
        "attention_multiplier": mixer.scale or usual_scale(mixer.head_size(model.d_model)),
        "residual_multiplier": model.residual.multiplier,
        "logits_scaling": root(model.logit_scale, -1),
    }


GRANITE = Family("granite", "GraniteForCausalLM", to_config, from_config, rules, DEFAULTS)
