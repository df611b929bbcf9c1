"""What ViT, BERT and the towers of CLIP share: layers with biases everywhere, LayerNorms and a
plain FFN."""

from typing import Any

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    ffn_of,
    first_layer,
    layers_of,
    linear_rules,
)
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Rule
from jaxformer.model.trunk_config import TrunkConfig

Json = dict[str, Any]

ACTIVATIONS = {
    "gelu": "exact_gelu",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


def encoder_layers(hub: HubConfig, placement: str, qkv_bias: bool = True) -> Json:
    """The keys of our `model:` section for the layers."""
    d_model, num_heads = hub.count("hidden_size"), hub.count("num_attention_heads")
    hub.need_divisible("hidden_size", d_model, "num_attention_heads", num_heads)
    return {
        "d_model": d_model,
        "num_layers": layers_of(hub),
        "order": "full",
        "init": {"std": hub.number("initializer_range"), "output": "plain"},
        "mixer": {
            "kind": "attention",
            "num_heads": num_heads,
            "qkv_bias": qkv_bias,
            "output_bias": True,
        },
        "ffn": {
            "kind": ACTIVATIONS[hub.need("hidden_act", *ACTIVATIONS)],
            "d_hidden": hub.count("intermediate_size"),
            "bias": True,
        },
        "norm": {
            "kind": "layer",
            "placement": placement,
            "eps": hub.number("layer_norm_eps"),
            "bias": True,
        },
    }


def encoder_sizes(model: TrunkConfig) -> Json:
    """The keys of config.json for the layers."""
    layer = first_layer(model)
    ffn = ffn_of(layer)
    theirs = (theirs for theirs, ours in ACTIVATIONS.items() if ours == ffn.kind)
    return {
        "hidden_size": model.d_model,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": attention_of(layer).num_heads,
        "intermediate_size": ffn.d_hidden,
        "hidden_act": next(theirs, "gelu"),
        "initializer_range": model.init.std,
        "layer_norm_eps": model.norm.eps,
    }


def encoder_rules(attention: str, qkv_bias: bool = True) -> list[Rule]:
    """The matrices of a layer, whose queries, keys and values are within `attention`."""
    projections = [
        rule
        for name in ("query", "key", "value")
        for rule in linear_rules(f"{attention}.{name}", f"mixer/{name}", qkv_bias)
    ]
    return [
        *projections,
        *linear_rules("attention.output.dense", "mixer/output", bias=True, inputs=2),
        *linear_rules("intermediate.dense", "ffn/in", bias=True),
        *linear_rules("output.dense", "ffn/out", bias=True),
    ]
