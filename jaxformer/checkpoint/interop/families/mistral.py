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
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rope import from_rope, to_rope
from jaxformer.model.config import ModelConfig


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("attention_bias", False)
    # A file that does not say has 4096, one that says null has none.
    window = hub.take("sliding_window", None) if hub.has("sliding_window") else 4096
    mixer = {**heads(hub), "window": window}
    return model_section(
        hub,
        tied=False,
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


MISTRAL = Family("mistral", "MistralForCausalLM", to_config, from_config, rules)
