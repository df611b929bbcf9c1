"""Llama (Touvron et al., 2023, arXiv:2302.13971), Llama 2 and 3, and SmolLM, which has its shape.

Every scaling of RoPE, biases or none, tied embeddings or not.
"""

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


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    bias = hub.take("attention_bias", False)
    mixer = {**heads(hub), "qkv_bias": bias, "output_bias": bias}
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
        "attention_bias": attention_of(layer).qkv_bias,
        "mlp_bias": layer.ffn is not None and layer.ffn.bias,
    }


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [layer_rules(layer) for layer in model.layers()])


LLAMA = Family("llama", "LlamaForCausalLM", to_config, from_config, rules)
