"""OLMo 2 (2024, arXiv:2501.00656): norms after the sub-layers, and of all queries and all keys."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
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
from jaxformer.checkpoint.interop.rope import from_rope, to_rope
from jaxformer.checkpoint.interop.rules import Rule
from jaxformer.model.config import ModelConfig

NORMS = {"post_attention_layernorm": "mixer_norm", "post_feedforward_layernorm": "ffn_norm"}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    bias, norm = hub.take("attention_bias", False), rms_norm(hub, "after", 1e-5)
    mixer = {
        **heads(hub),
        "qkv_bias": bias,
        "output_bias": bias,
        "qk_norm": "width",
        "qk_norm_eps": norm["eps"],
    }
    return model_section(
        hub,
        tied=False,
        mixers=[mixer],
        ffn=gated_ffn(hub, "swiglu"),
        norm=norm,
        positions=to_rope(hub, mixer["head_dim"]),
    )


def from_config(model: ModelConfig) -> Json:
    layer = first_layer(model)
    return {
        **sizes(model),
        **from_rope(layer.positions),
        "hidden_act": "silu",
        "attention_bias": attention_of(layer).qkv_bias,
    }


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [layer_rules(layer, NORMS) for layer in model.layers()])


OLMO2 = Family("olmo2", "Olmo2ForCausalLM", to_config, from_config, rules)
