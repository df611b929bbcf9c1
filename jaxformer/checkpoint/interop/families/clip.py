"""CLIP (Radford et al., 2021, arXiv:2103.00020): texts from left to right, of which the end counts,
and pictures, of which a class token does."""

import math

from jaxformer.checkpoint.interop.decoder import linear_rules
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Rule, row
from jaxformer.checkpoint.interop.towers import (
    PARTS,
    PICTURES,
    TEXT,
    UNUSED,
    outputs_of,
    part_of,
    pictures,
    sizes_of_towers,
    texts,
    tower_rules,
)
from jaxformer.model.config import ModelConfig

DEFAULTS: Json = {"projection_dim": 512, "logit_scale_init_value": 2.6592}
LAYERS: Json = {
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "initializer_range": 0.02,
}
OF_TEXTS: Json = {
    **LAYERS,
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
}
OF_PICTURES: Json = {
    **LAYERS,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}


def to_config(hub: HubConfig) -> Json:
    text, vision = part_of(hub, TEXT, OF_TEXTS), part_of(hub, PICTURES, OF_PICTURES)
    section = {
        **texts(text, "causal"),
        "outputs": {
            "kind": "contrastive",
            "width": hub.count("projection_dim"),
            "tokens": {"pool": "last"},
            "source": {"pool": "first"},
            "scale": math.exp(hub.number("logit_scale_init_value")),
            "bias": None,
        },
        "encoder": pictures(vision, class_token=True, bias=False, embedding_norm=True),
    }
    for part in (text, vision):
        part.take("projection_dim", None)  # of a tower alone
        part.finish()
    return section


def from_config(model: ModelConfig) -> Json:
    outputs = outputs_of(model)
    return {
        **sizes_of_towers(model, "clip"),
        "projection_dim": outputs.width,
        "logit_scale_init_value": math.log(outputs.scale),
    }


def rules(model: ModelConfig) -> list[Rule]:
    return [
        *tower_rules(model),
        *linear_rules("text_projection", "tokens_projection"),
        *linear_rules("visual_projection", "source_projection"),
        row("logit_scale", "log_scale"),
    ]


CLIP = Family(
    "clip",
    "CLIPModel",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    prefix="",
    unused=UNUSED,
    parts=PARTS,
    reads="images",
    image_processor="CLIPImageProcessor",
    objective={"kind": "contrastive", "form": "softmax", "most_scale": 100.0},
)
