"""Mamba-2 (Dao and Gu, 2024, arXiv:2405.21060)."""

import math

from jaxformer.checkpoint.interop.convolution import convolution_rules
from jaxformer.checkpoint.interop.decoder import (
    VECTOR,
    first_layer,
    mixer_of,
)
from jaxformer.checkpoint.interop.families.mamba import (
    SHARED_DEFAULTS,
    backbone_rules,
    from_section,
    to_section,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Linear, Rule, row
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.mixers.mamba2 import EPSILON, Mamba2Config

NO_LIMITS = ([0.0, math.inf], [0.0, {"__float__": "Infinity"}])  # JSON knows no infinity

DEFAULTS: Json = {
    **SHARED_DEFAULTS,
    "num_heads": 128,
    "head_dim": 64,
    "state_size": 128,
    "n_groups": 8,
    "time_step_limit": [0.0, math.inf],
    "tie_word_embeddings": False,
}


def to_config(hub: HubConfig) -> Json:
    for key in ("chunk_size", "time_step_rank", "A_initializer_range"):
        hub.take(key, None)
    hub.need("time_step_limit", *NO_LIMITS)
    num_heads, head_dim = hub.count("num_heads"), hub.count("head_dim")
    num_groups = hub.count("n_groups")
    mixer = {"kind": "mamba2", "head_dim": head_dim, "num_groups": num_groups}
    section = to_section(hub, mixer)
    if num_heads * head_dim != round(section["mixer"]["expansion"] * section["d_model"]):
        raise UserError(
            f"{hub.name} has num_heads {num_heads} of head_dim {head_dim}, whose product is not "
            f"expand × hidden_size"
        )
    hub.need_divisible("num_heads", num_heads, "n_groups", num_groups)
    if section["norm"]["eps"] != EPSILON:
        raise UserError(
            f"{hub.name} has layer_norm_epsilon {section['norm']['eps']}; only {EPSILON} is "
            f"supported for mamba2, whose gated norm uses it too"
        )
    return section


def from_config(model: ModelConfig) -> Json:
    mixer = mixer_of(first_layer(model), Mamba2Config)
    return {
        **from_section(model, mixer),
        "num_heads": mixer.sizes(model.d_model).heads,
        "head_dim": mixer.head_dim,
        "n_groups": mixer.num_groups,
    }


def rules(model: ModelConfig) -> list[Rule]:
    parts = tuple(f"{name}/kernel" for name in ("z", "x", "b", "c", "dt"))
    mixer = [
        Rule("in_proj.weight", parts, Linear()),
        *convolution_rules("conv1d", "conv"),
        row("dt_bias", "dt_bias", VECTOR),
        row("A_log", "a_log", VECTOR),
        row("D", "skip", VECTOR),
        row("norm.weight", "scale", VECTOR),
        row("out_proj.weight", "output/kernel", Linear(inputs=2)),
    ]
    return backbone_rules(model, mixer)


MAMBA2 = Family(
    "mamba2", "Mamba2ForCausalLM", to_config, from_config, rules, DEFAULTS, prefix="backbone."
)
