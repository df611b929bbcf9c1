"""Rotary positions, between config.json and ours."""

import math
from typing import Any

from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.model.positions import (
    DynamicScalingConfig,
    LinearScalingConfig,
    Llama3ScalingConfig,
    LongRoPEScalingConfig,
    RoPEConfig,
    YaRNScalingConfig,
)
from jaxformer.schema import UserError

Json = dict[str, Any]


def to_rope(hub: HubConfig, head_dim: int, *, partial: float | None = None) -> Json:
    """Our `positions:`. Newer files have `rope_parameters`, older `rope_theta` and `rope_scaling`.

    `partial` is the usual fraction of a head that is rotated, where a family knows others than 1.

    Raises:
        UserError: a scaling that we do not have, or options of it.
    """
    base = hub.number("rope_theta", 10000.0)
    hub.need("rope_interleaved", False)
    scaling = {**hub.take("rope_scaling", {}), **hub.take("rope_parameters", {})}
    options = HubConfig(scaling, f"{hub.name}: rope_parameters")
    kind = options.take("rope_type", options.take("type", "default"))
    fraction = 1.0
    if partial is not None:
        usual = hub.number("partial_rotary_factor", partial)
        fraction = options.number("partial_rotary_factor", usual)
        if int(head_dim * fraction) != round(head_dim * fraction):
            raise UserError(f"{hub.name} rotates {head_dim * fraction} features of a head")
    if kind not in SCALINGS:
        raise UserError(f"{hub.name} has rope_type {kind!r}; supported: {', '.join(SCALINGS)}")
    longest = hub.take("max_position_embeddings", None)
    if kind != "default":
        longest = hub.count("max_position_embeddings")
    own = options.take("original_max_position_embeddings", longest)
    original = hub.take("original_max_position_embeddings", own)
    positions = {
        "kind": "rope",
        "base": options.number("rope_theta", base),
        "fraction": fraction,
        "max_length": longest,
        "scaling": SCALINGS[kind](options, original, longest),
    }
    options.finish()
    return positions


def _linear(options: HubConfig, original: int, longest: int) -> Json:
    return {"kind": "linear", "factor": options.number("factor")}


def _dynamic(options: HubConfig, original: int, longest: int) -> Json:
    factor = options.number("factor")
    return {"kind": "dynamic", "factor": factor, "original_max_length": longest}


def _yarn(options: HubConfig, original: int, longest: int) -> Json:
    factor = options.number("factor", longest / original)
    attention = options.take("attention_factor", None)
    parts = [options.take(key, None) for key in ("mscale", "mscale_all_dim")]
    if attention is None and all(parts):
        one, all_dim = (0.1 * part * math.log(max(factor, 1)) + 1 for part in parts)
        attention = one / all_dim
    return {
        "kind": "yarn",
        "factor": factor,
        "original_max_length": original,
        "beta_fast": options.number("beta_fast", 32),
        "beta_slow": options.number("beta_slow", 1),
        "attention_factor": attention,
        "truncate": options.take("truncate", True),
    }


def _llama3(options: HubConfig, original: int, longest: int) -> Json:
    return {
        "kind": "llama3",
        "factor": options.number("factor"),
        "original_max_length": original,
        "low_frequency_factor": options.number("low_freq_factor"),
        "high_frequency_factor": options.number("high_freq_factor"),
    }


def _longrope(options: HubConfig, original: int, longest: int) -> Json:
    factor = options.number("factor", longest / original)
    attention = math.sqrt(1 + math.log(max(factor, 1)) / math.log(original))
    return {
        "kind": "longrope",
        "short_factors": options.take("short_factor"),
        "long_factors": options.take("long_factor"),
        "original_max_length": original,
        "attention_factor": options.number("attention_factor", attention),
    }


SCALINGS = {
    "default": lambda options, original, longest: None,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,  # its earlier name
}


def from_rope(positions: Any) -> Json:
    """The keys of config.json.

    Raises:
        UserError: positions of another kind, or a scaling that transformers does not have.
    """
    if not isinstance(positions, RoPEConfig):
        raise UserError(f"positions of kind '{positions.kind}', where this family has rope")
    options: Json = {"rope_theta": positions.base, "rope_type": "default"}
    if positions.fraction != 1.0:
        options["partial_rotary_factor"] = positions.fraction
    longest = positions.max_length
    match scaling := positions.scaling:
        case None:
            pass
        case LinearScalingConfig():
            options |= {"rope_type": "linear", "factor": scaling.factor}
        case DynamicScalingConfig():
            options |= {"rope_type": "dynamic", "factor": scaling.factor}
            longest = scaling.original_max_length
        case YaRNScalingConfig():
            options |= {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_max_length,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
            }
            if scaling.attention_factor is not None:
                options["attention_factor"] = scaling.attention_factor
        case Llama3ScalingConfig():
            options |= {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_max_length,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
            }
        case LongRoPEScalingConfig():
            options |= {
                "rope_type": "longrope",
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.long_factors),
                "original_max_position_embeddings": scaling.original_max_length,
                "attention_factor": scaling.attention_factor,
            }
        case _:
            raise UserError(f"positions.scaling '{scaling.kind}', which transformers does not have")
    return {"rope_parameters": options, "max_position_embeddings": longest}
