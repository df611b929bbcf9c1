"""Llama (Touvron et al., 2023, arXiv:2302.13971), Llama 2 and 3, and SmolLM, which has its shape.

Every scaling of RoPE, biases or none, tied embeddings or not.
"""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    attention_rules,
    first_layer,
    gated_ffn_rules,
    heads,
    model_rules,
    model_section,
    norm_rules,
    sizes,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rope import from_rope, to_rope
from jaxformer.checkpoint.interop.rules import Rule, within
from jaxformer.model.config import Layer, ModelConfig

NORMS = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "ffn_norm"}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    shape = heads(hub)
    bias = hub.take("attention_bias", False)
    return model_section(
        hub,
        tied=False,
        mixer={"kind": "attention", **shape, "qkv_bias": bias, "output_bias": bias},
        ffn={
            "kind": "swiglu",
            "d_hidden": hub.take("intermediate_size"),
            "bias": hub.take("mlp_bias", False),
        },
        norm={"kind": "rms", "placement": "pre", "eps": hub.take("rms_norm_eps", 1e-6)},
        positions=to_rope(hub, shape["head_dim"]),
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


def layer_rules(layer: Layer) -> list[Rule]:
    return [
        *norm_rules(NORMS),
        *within("self_attn", "mixer", attention_rules(attention_of(layer))),
        *within("mlp", "ffn", gated_ffn_rules(layer.ffn is not None and layer.ffn.bias)),
    ]


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [layer_rules(layer) for layer in model.layers()])


LLAMA = Family("llama", "LlamaForCausalLM", to_config, from_config, rules)
