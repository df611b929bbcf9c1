"""OLMo 3 (2025, arXiv:2512.13961): OLMo 2 with a window in three of four layers, whose positions
are not scaled."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    first_layer,
    gated_ffn,
    model_section,
    rms_norm,
    sizes,
    window_options,
    windows,
)
from jaxformer.checkpoint.interop.families.olmo2 import DEFAULTS as OLMO2_DEFAULTS
from jaxformer.checkpoint.interop.families.olmo2 import attention, rules
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig, shown
from jaxformer.checkpoint.interop.rope_of_layers import from_ropes, to_ropes
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig

THETA = 500000.0
DEFAULTS: Json = {
    **OLMO2_DEFAULTS,
    "rope_theta": THETA,
    "sliding_window": 4096,
    "layer_types": None,  # a window in all but the last of every four layers
}
NULLABLE = ("sliding_window",)


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    mixer = attention(hub)
    window = hub.count("sliding_window", None, most=LARGEST)
    found = windows(hub, window, ["sliding_attention"] * 3 + ["full_attention"])
    return model_section(
        hub,
        mixers=[{**mixer, "window": each} for each in found],
        layer_positions=to_ropes(hub, mixer["head_dim"], found, _thetas(hub)),
        ffn=gated_ffn(hub, "swiglu"),
        norm=rms_norm(hub, "after"),
    )


def _thetas(hub: HubConfig) -> dict[str, float]:
    """The bases of both types of layers, if their sections name none.

    Raises:
        UserError: the file has one for both that is not the default.
    """
    theta = hub.number("rope_theta")
    sections = HubConfig(hub.section("rope_parameters"), f"{hub.name}: rope_parameters")
    own = sections.section("sliding_attention")
    if theta != THETA and "rope_theta" not in own:
        raise UserError(
            f"{hub.name} has rope_theta {shown(theta)}, which transformers reads for layers with "
            f"full attention alone, and {THETA:g} for those with a window; give rope_parameters "
            f"a section sliding_attention with a rope_theta"
        )
    return {"full_attention": theta, "sliding_attention": THETA}


def from_config(model: ModelConfig) -> Json:
    return {
        **sizes(model),
        **window_options(model),
        **from_ropes(model),
        "hidden_act": "silu",
        "attention_bias": attention_of(first_layer(model)).qkv_bias,
    }


OLMO3 = Family("olmo3", "Olmo3ForCausalLM", to_config, from_config, rules, DEFAULTS, NULLABLE)
