"""The Vision Transformer (Dosovitskiy et al., 2020, arXiv:2010.11929), with a class token."""

from jaxformer.checkpoint.interop.decoder import (
    VECTOR,
    attention_of,
    first_layer,
    layer_norm_rules,
)
from jaxformer.checkpoint.interop.encoder import encoder_layers, encoder_rules, encoder_sizes
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.patches import (
    PatchKernel,
    number_of_patches,
    patches_of,
    sizes_of_patches,
)
from jaxformer.checkpoint.interop.rules import Leading, Linear, Rule, row, within
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import PatchesConfig
from jaxformer.model.layer import Layer

# The pooler and the decoder of hidden patches have these names; neither of them classifies.
UNREAD = ("encoder_stride", "pooler_act", "pooler_output_size")

DEFAULTS: Json = {
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}


def _classes(hub: HubConfig) -> int:
    """As many as have names; transformers assumes two where a file says nothing."""
    names = hub.section("id2label")
    count: int = hub.count("num_labels", len(names) or 2)
    if names and count != len(names):
        raise UserError(f"{hub.name} has num_labels {count}, but {len(names)} names in id2label")
    return count


def to_config(hub: HubConfig) -> Json:
    for key in UNREAD:
        hub.take(key, None)
    inputs = patches_of(hub)
    return {
        "vocab_size": _classes(hub),
        "tie_embeddings": False,
        "inputs": {**inputs, "class_token": True},
        "outputs": {"kind": "classes", "pool": "first"},
        **encoder_layers(hub, "pre", qkv_bias=hub.flag("qkv_bias")),
        "positions": {"kind": "learned", "max_length": 1 + number_of_patches(inputs)},
    }


def from_config(model: ModelConfig) -> Json:
    return {
        **encoder_sizes(model),
        **sizes_of_patches(model),
        "num_labels": model.vocab_size,
        "qkv_bias": attention_of(first_layer(model)).qkv_bias,
    }


def rules(model: ModelConfig) -> list[Rule]:
    assert isinstance(model.inputs, PatchesConfig)
    patches = "vit.embeddings.patch_embeddings.projection"
    table = [
        row("vit.embeddings.cls_token", "class_token", Leading(2)),
        row("vit.embeddings.position_embeddings", "position_embedding", Leading(1)),
        row(f"{patches}.weight", "patch_projection/kernel", PatchKernel(model.inputs.patch)),
        row(f"{patches}.bias", "patch_projection/bias"),
    ]
    for index, layer in enumerate(model.layers()):
        table += within(f"vit.encoder.layer.{index}", f"layers/{index}", _layer(layer))
    table += layer_norm_rules("vit.layernorm", "final_norm")
    return [
        *table,
        row("classifier.weight", "head", Linear()),
        row("classifier.bias", "head_bias", VECTOR),
    ]


def _layer(layer: Layer) -> list[Rule]:
    bias = attention_of(layer).qkv_bias is True
    return [
        *layer_norm_rules("layernorm_before", "mixer_norm"),
        *encoder_rules("attention.attention", bias),
        *layer_norm_rules("layernorm_after", "ffn_norm"),
    ]


VIT = Family(
    "vit",
    "ViTForImageClassification",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    prefix="vit.",
    unused=r"(vit\.)?pooler\.dense\.(weight|bias)",
    fresh=("classifier.weight", "classifier.bias"),
    reads="images",
    objective={"kind": "classes"},
)
