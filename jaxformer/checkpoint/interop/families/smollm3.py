"""SmolLM3 (Bakouch et al., 2025): Llama, in which some layers have no positions (NoPE: Yang et al.,
2025, arXiv:2501.18795)."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    ffn_of,
    first_layer,
    gated_ffn,
    heads,
    layers_of,
    model_section,
    rms_norm,
    sizes,
    window_options,
    windows,
)
from jaxformer.checkpoint.interop.families.llama import rules
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig, shown
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS, from_rope, to_rope
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig

DEFAULTS: Json = {
    **ROPE_DEFAULTS,
    "rope_theta": 2000000.0,
    "num_key_value_heads": 4,  # null: as many as num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "layer_types": None,  # with use_sliding_window, a window in layers without positions
    "no_rope_layers": None,  # 1 for a layer with positions, despite the name
    "no_rope_layer_interval": 4,  # the last of every so many layers has none
}
NULLABLE = ("num_key_value_heads",)


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    hub.take("max_window_layers", None)  # its file has it, its class does not
    bias = hub.flag("attention_bias")
    mixer = {**heads(hub), "qkv_bias": bias, "output_bias": bias}
    rotated = _rotated(hub)
    rope, none = to_rope(hub, mixer["head_dim"]), {"kind": "none"}
    return model_section(
        hub,
        mixers=[{**mixer, "window": window} for window in _windows(hub, rotated)],
        layer_positions=[rope if each else none for each in rotated],
        positions=rope if any(rotated) else none,  # the longest row is told by these
        ffn=gated_ffn(hub, "swiglu"),
        norm=rms_norm(hub, "pre"),
    )


def _rotated(hub: HubConfig) -> list[bool]:
    """Whether each layer has positions."""
    num_layers, interval = layers_of(hub), hub.count("no_rope_layer_interval")
    usual = [int((layer + 1) % interval != 0) for layer in range(num_layers)]
    found = hub.listed("no_rope_layers", usual)
    if len(found) < num_layers or any(each not in (0, 1) for each in found):
        raise UserError(
            f"{hub.name} has no_rope_layers {shown(found)}; allowed: a list of 0 and 1, one for "
            f"each of the {num_layers} layers"
        )
    return [bool(each) for each in found[:num_layers]]


def _windows(hub: HubConfig, rotated: list[bool]) -> list[int | None]:
    """The window of every layer, used only with `use_sliding_window`."""
    is_used = hub.flag("use_sliding_window")
    window = hub.count("sliding_window", None, least=int(is_used), most=LARGEST)
    window = window if is_used else None
    full = [window is None or each for each in rotated]
    return windows(hub, window, ["full_attention" if e else "sliding_attention" for e in full])


def from_config(model: ModelConfig) -> Json:
    first, layers, options = first_layer(model), model.layers(), window_options(model)
    positions = [layer.positions for layer in layers if layer.positions.kind != "none"]
    return {
        **sizes(model),
        **(from_rope(positions[0]) if positions else {}),
        **options,
        "use_sliding_window": "sliding_attention" in options["layer_types"],
        "no_rope_layers": [int(layer.positions.kind != "none") for layer in layers],
        "hidden_act": "silu",
        "attention_bias": attention_of(first).qkv_bias,
        "mlp_bias": ffn_of(first).bias,
    }


SMOLLM3 = Family("smollm3", "SmolLM3ForCausalLM", to_config, from_config, rules, DEFAULTS, NULLABLE)
