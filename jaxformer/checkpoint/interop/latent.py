"""Latent attention in config.json, and its tensors."""

import math
from dataclasses import dataclass

import numpy as np

from jaxformer.checkpoint.interop.decoder import linear_rules, norm_rules
from jaxformer.checkpoint.interop.family import Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rope import yarn_factor
from jaxformer.checkpoint.interop.rules import Linear, Rule, Shape, Transform, row
from jaxformer.model.mixers.latent_attention import LatentAttentionConfig

DIGITS = 12  # of an option that is derived from a scale


@dataclass(frozen=True)
class Neighbours:
    """Like `Linear`, where theirs rotates neighbours among the last `rotated` outputs of each head:
    their pairs are 2i and 2i + 1, and ours i and i + rotated/2."""

    rotated: int

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        plain, turned = self._split(Linear().to_ours(theirs, shape))
        return np.concatenate([plain, turned[..., 0::2], turned[..., 1::2]], axis=-1)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        plain, turned = self._split(ours)
        pairs = np.stack(np.split(turned, 2, axis=-1), axis=-1).reshape(turned.shape)
        return Linear().to_theirs(np.concatenate([plain, pairs], axis=-1))

    def _split(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        plain = outputs.shape[-1] - self.rotated
        return outputs[..., :plain], outputs[..., plain:]


def latent_attention(hub: HubConfig) -> Json:
    """Our mixer.

    Raises:
        UserError: a size is missing or wrong, or there are biases.
    """
    num_heads = hub.count("num_attention_heads")
    hub.need("num_key_value_heads", num_heads)
    hub.need("attention_bias", False)
    plain, rotated = hub.count("qk_nope_head_dim"), hub.count("qk_rope_head_dim")
    hub.need("qk_head_dim", plain + rotated)
    return {
        "kind": "latent_attention",
        "num_heads": num_heads,
        "head_dim": plain,
        "rope_dim": rotated,
        "value_dim": hub.count("v_head_dim"),
        "kv_rank": hub.count("kv_lora_rank"),
        "query_rank": hub.count("q_lora_rank", None),
    }


def latent_sizes(mixer: LatentAttentionConfig) -> Json:
    """The keys of config.json for our mixer."""
    return {
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_heads,
        "qk_nope_head_dim": mixer.head_dim,
        "qk_rope_head_dim": mixer.rope_dim,
        "v_head_dim": mixer.value_dim,
        "kv_lora_rank": mixer.kv_rank,
        "q_lora_rank": mixer.query_rank,
    }


def latent_rules(mixer: LatentAttentionConfig, rotated: Transform) -> list[Rule]:
    """`rotated` is of matrices whose last outputs, of each head, are rotated."""
    queries = "q_proj" if mixer.query_rank is None else "q_b_proj"
    rules = [row(f"{queries}.weight", "query/kernel", rotated)]
    if mixer.query_rank is not None:
        rules += linear_rules("q_a_proj", "query_latent")
        rules += norm_rules({"q_a_layernorm": "query_latent_norm"})
    down = ("latent/kernel", "rotary_key/kernel")
    return [
        *rules,
        Rule("kv_a_proj_with_mqa.weight", down, (Linear(), rotated)),
        *norm_rules({"kv_a_layernorm": "latent_norm"}),
        *linear_rules("kv_b_proj", "expand"),
        *linear_rules("o_proj", "output", inputs=2),
    ]


def yarn_scale(hub: HubConfig, mixer: Json) -> float | None:
    """The scale of the logits with YaRN, whose `mscale_all_dim` DeepSeek applies to queries and
    keys: (0.1 · mscale_all_dim · ln(factor) + 1)² / √head_dim. None for the usual one."""
    section = hub.section("rope_scaling") or hub.section("rope_parameters")
    yarn = HubConfig(section, f"{hub.name}: rope_scaling")
    if "yarn" not in (section.get("rope_type"), section.get("type")):
        return None
    all_dim = yarn.number("mscale_all_dim", None)
    factor = yarn.number("factor")
    if all_dim is None or factor <= 1:
        return None
    times = yarn_factor(all_dim, factor)
    return (mixer["head_dim"] + mixer["rope_dim"]) ** -0.5 * times * times


def mscale_all_dim(mixer: LatentAttentionConfig, factor: float) -> float | None:
    """The inverse of `yarn_scale`."""
    if mixer.scale is None:
        return None
    times = math.sqrt(mixer.scale * math.sqrt(mixer.head_dim + mixer.rope_dim))
    return round((times - 1.0) / (0.1 * math.log(factor)), DIGITS)
