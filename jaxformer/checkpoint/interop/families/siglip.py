"""SigLIP (Zhai et al., 2023, arXiv:2303.15343): texts that are filled up, of which the last place
counts, and pictures, of which a probe finds what does."""

from jaxformer.checkpoint.interop.decoder import VECTOR, layer_norm_rules, linear_rules
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig, shown
from jaxformer.checkpoint.interop.rules import Leading, Linear, Rule, row
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
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig

LAYERS: Json = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "initializer_range": 0.02,  # which no file has
}
OF_TEXTS: Json = {**LAYERS, "vocab_size": 32000, "max_position_embeddings": 64}
OF_PICTURES: Json = {
    **LAYERS,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "vision_use_head": True,
}
HEAD = "vision_model.head"
PROJECTED = ("query", "key", "value")


def to_config(hub: HubConfig) -> Json:
    text, vision = part_of(hub, TEXT, OF_TEXTS), part_of(hub, PICTURES, OF_PICTURES)
    vision.need("vision_use_head", True)
    encoder = pictures(vision, class_token=False)
    section = texts(text, "full")
    if encoder["norm"] != section["norm"]:
        theirs = [part.take("layer_norm_eps") for part in (text, vision)]
        raise UserError(
            f"{hub.name} has layer_norm_eps {shown(theirs[0])} in {TEXT} and {shown(theirs[1])} in "
            f"{PICTURES}; allowed: the same"
        )
    probe = {"num_heads": encoder["mixer"]["num_heads"], "ffn": encoder["ffn"]}
    section |= {
        "outputs": {
            "kind": "contrastive",
            "width": text.count("projection_size", section["d_model"]),
            "tokens": {"pool": "last", "projection": "affine"},
            "source": {"pool": "probe", "probe": probe, "projection": "none"},
        },
        "encoder": encoder,
    }
    for part in (text, vision):
        part.finish()
    return section


def from_config(model: ModelConfig) -> Json:
    sections = sizes_of_towers(model, "siglip")
    sections[TEXT]["projection_size"] = outputs_of(model).width
    for section in sections.values():
        section.pop("initializer_range", None)
    return sections


def rules(model: ModelConfig) -> list[Rule]:
    kernels, biases = (
        tuple(f"source_pool/{name}/{part}" for name in PROJECTED) for part in ("kernel", "bias")
    )
    return [
        *tower_rules(model),
        *linear_rules("text_model.head", "tokens_projection", bias=True),
        row(f"{HEAD}.probe", "source_pool/probe", Leading(2)),
        Rule(f"{HEAD}.attention.in_proj_weight", kernels, Linear()),
        Rule(f"{HEAD}.attention.in_proj_bias", biases, VECTOR),
        *linear_rules(f"{HEAD}.attention.out_proj", "source_pool/output", bias=True, inputs=2),
        *layer_norm_rules(f"{HEAD}.layernorm", "source_pool/norm"),
        *linear_rules(f"{HEAD}.mlp.fc1", "source_pool/ffn/in", bias=True),
        *linear_rules(f"{HEAD}.mlp.fc2", "source_pool/ffn/out", bias=True),
        row("logit_scale", "log_scale", Leading(1)),
        row("logit_bias", "logit_bias", Leading(1)),
    ]


SIGLIP = Family(
    "siglip",
    "SiglipModel",
    to_config,
    from_config,
    rules,
    {},
    prefix="",
    unused=UNUSED,
    parts=PARTS,
    reads="images",
    image_processor="SiglipImageProcessor",
    objective={"kind": "contrastive"},
)
