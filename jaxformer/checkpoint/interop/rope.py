"""Rotary positions: from config.json to our configuration, and back."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig, shown
from jaxformer.errors import UserError
from jaxformer.model.positions import (
    DynamicScalingConfig,
    LinearScalingConfig,
    Llama3ScalingConfig,
    LongRoPEScalingConfig,
    RoPEConfig,
    YaRNScalingConfig,
)

Json = dict[str, Any]


class Sizes(NamedTuple):
    """What scalings depend on: lengths in training and at most, and rotated pairs of a head."""

    original: int
    longest: int
    pairs: int


MOST_ROTATED = 4096  # features of a head: a square matrix of this size is made
ROPE_DEFAULTS: Json = {"rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None}


def to_rope(
    hub: HubConfig,
    head_dim: int,
    *,
    kinds: Collection[str] | None = None,
    default: Json | None = None,
) -> Json:
    """Our `positions:`. Newer files have `rope_parameters`, older `rope_theta` and `rope_scaling`;
    from a file with both, transformers reads `rope_scaling` alone.

    A family that may rotate a part of a head has `partial_rotary_factor` among its defaults, one
    that supports only some scalings gives them as `kinds`, and one that has another `default` than
    none gives that.

    Raises:
        UserError: a scaling, or an option of one, that we do not have.
    """
    old, new = hub.section("rope_scaling"), hub.section("rope_parameters")
    name, section = ("rope_scaling", old) if old else ("rope_parameters", new or default or {})
    return rope_section(hub, name, section, head_dim, hub.number("rope_theta"), kinds)


def rope_section(
    hub: HubConfig,
    name: str,
    section: Json,
    head_dim: int,
    theta: float,
    kinds: Collection[str] | None = None,
) -> Json:
    """Our `positions:` of the keys in `section`, which `hub` has as `name`, and of a base for a
    section without one; for `kinds` and what is refused see `to_rope`."""
    hub.need("rope_interleaved", False)
    fraction = _fraction(hub, hub)
    longest = hub.count("max_position_embeddings", None, most=LARGEST)
    options = HubConfig(
        section,
        f"{hub.name}: {name}",
        defaults={
            "rope_type": "default",
            "type": "default",  # its earlier name
            "rope_theta": theta,
            "partial_rotary_factor": fraction,
            "original_max_position_embeddings": longest,
            "truncate": True,
        },
    )
    kind = options.take("type")
    if options.has("rope_type"):
        kind = options.take("rope_type")
    supported = [each for each in SCALINGS if kinds is None or each in kinds]
    if section.keys() - options.defaults.keys() and not {"rope_type", "type"} & section.keys():
        raise UserError(
            f"{options.name} has {', '.join(section)}, but no rope_type (or type, its earlier "
            f"name), without which transformers ignores them; supported: {', '.join(supported)}"
        )
    if kind not in supported:
        raise UserError(
            f"{options.name} has rope_type {shown(kind)}; supported: {', '.join(supported)}"
        )
    if kind not in ("default", "linear"):
        longest = hub.count("max_position_embeddings", most=LARGEST)
    fraction = _fraction(hub, options)
    rotated = head_dim * fraction
    most = min(head_dim, MOST_ROTATED)
    if int(rotated) != round(rotated) or int(rotated) % 2 or not 0 < int(rotated) <= most:
        raise UserError(
            f"{hub.name} rotates {rotated:g} of the {head_dim} features of a head; allowed: an "
            f"even number up to {most}"
        )
    own = options.count("original_max_position_embeddings", None, most=LARGEST)
    original = hub.count("original_max_position_embeddings", own, most=LARGEST)
    positions = {
        "kind": "rope",
        "base": options.number("rope_theta"),
        "fraction": fraction,
        "max_length": longest,
        "scaling": SCALINGS[kind](options, Sizes(original, longest, int(rotated) // 2)),
    }
    options.finish()
    return positions


def _fraction(hub: HubConfig, options: HubConfig) -> float:
    """The part of a head that is rotated, as `options` say it."""
    if "partial_rotary_factor" not in hub.defaults:
        return float(options.need("partial_rotary_factor", 1.0))
    fraction: float = options.number("partial_rotary_factor")
    return fraction


def _linear(options: HubConfig, sizes: Sizes) -> Json:
    return {"kind": "linear", "factor": options.number("factor")}


def _dynamic(options: HubConfig, sizes: Sizes) -> Json:
    factor = options.number("factor")
    return {"kind": "dynamic", "factor": factor, "original_max_length": sizes.longest}


def _yarn(options: HubConfig, sizes: Sizes) -> Json:
    factor = options.number("factor")
    attention = options.number("attention_factor", None)
    parts = [options.number(key, None) for key in ("mscale", "mscale_all_dim")]
    if attention is None and all(parts):
        one, all_dim = (yarn_factor(part, factor) for part in parts)
        attention = one / all_dim
    return {
        "kind": "yarn",
        "factor": factor,
        "original_max_length": sizes.original,
        "beta_fast": options.number("beta_fast", 32),
        "beta_slow": options.number("beta_slow", 1),
        "attention_factor": attention,
        "truncate": options.flag("truncate"),
    }


def yarn_factor(mscale: float, factor: float) -> float:
    """What YaRN multiplies queries and keys by: 0.1 · mscale · ln(max(factor, 1)) + 1."""
    return 0.1 * mscale * math.log(max(factor, 1)) + 1


def _llama3(options: HubConfig, sizes: Sizes) -> Json:
    return {
        "kind": "llama3",
        "factor": options.number("factor"),
        "original_max_length": sizes.original,
        "low_frequency_factor": options.number("low_freq_factor"),
        "high_frequency_factor": options.number("high_freq_factor"),
    }


def _longrope(options: HubConfig, sizes: Sizes) -> Json:
    factor = options.number("factor", sizes.longest / sizes.original)
    attention = math.sqrt(1 + math.log(max(factor, 1)) / math.log(sizes.original))
    return {
        "kind": "longrope",
        "short_factors": _factors(options, "short_factor", sizes),
        "long_factors": _factors(options, "long_factor", sizes),
        "original_max_length": sizes.original,
        "attention_factor": options.number("attention_factor", attention),
    }


def _factors(options: HubConfig, key: str, sizes: Sizes) -> list[float]:
    """One factor per pair of features."""
    factors = options.listed(key)
    if len(factors) != sizes.pairs:
        raise UserError(
            f"{options.name} has {len(factors)} numbers in {key}, but head_dim × "
            f"partial_rotary_factor / 2 is {sizes.pairs}; give one for each pair"
        )
    for factor in factors:
        if type(factor) not in (int, float):
            raise UserError(f"{options.name} has {shown(factor)} in {key}; allowed: numbers")
    return factors


SCALINGS = {
    "default": lambda options, sizes: None,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,  # its earlier name
}


def from_rope(positions: Any) -> Json:
    """The keys of config.json for our `positions`.

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
    lengths = {} if longest is None else {"max_position_embeddings": longest}
    return {"rope_parameters": options, **lengths}
