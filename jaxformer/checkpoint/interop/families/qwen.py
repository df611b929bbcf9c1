"""Qwen2 (Yang et al., 2024, arXiv:2407.10671): biases of queries, keys and values. Qwen3 (Yang et
al., 2025, arXiv:2505.09388): norms of queries and keys instead. Both: windows in later layers."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
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
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS, from_rope, to_rope
from jaxformer.model.config import ModelConfig

DEFAULTS2: Json = {
    **ROPE_DEFAULTS,
    "num_key_value_heads": 32,  # null: as many as num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,  # null: no window
    "max_window_layers": 28,
    "layer_types": None,
}
DEFAULTS3: Json = {**DEFAULTS2, "head_dim": 128, "attention_bias": False}
NULLABLE = ("num_key_value_heads", "sliding_window")


def to_qwen2(hub: HubConfig) -> Json:
    return _to_config(hub, {"qkv_bias": True})


def to_qwen3(hub: HubConfig) -> Json:
    bias = hub.flag("attention_bias")
    norm = {"qk_norm": True, "qk_norm_eps": hub.number("rms_norm_eps")}
    return _to_config(hub, {"qkv_bias": bias, "output_bias": bias, **norm})


def _to_config(hub: HubConfig, options: Json) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("use_mrope", False)
    mixer = {**heads(hub), **options}
    return model_section(
        hub,
        mixers=[{**mixer, "window": window} for window in _windows(hub)],
        ffn=gated_ffn(hub, "swiglu"),
        norm=rms_norm(hub, "pre"),
        positions=to_rope(hub, mixer["head_dim"]),
    )


def _windows(hub: HubConfig) -> list[int | None]:
    """Each layer's window, used only with `use_sliding_window`, even if there are `layer_types`."""
    num_layers, first = layers_of(hub), hub.count("max_window_layers", least=0)
    is_used = hub.flag("use_sliding_window")
    window = hub.count("sliding_window", None, least=int(is_used), most=LARGEST)
    window = window if is_used else None
    full = num_layers if window is None else min(first, num_layers)
    types = ["full_attention"] * full + ["sliding_attention"] * (num_layers - full)
    return windows(hub, window, types)


def from_qwen2(model: ModelConfig) -> Json:
    layer, options = first_layer(model), window_options(model)
    return {
        **sizes(model),
        **from_rope(layer.positions),
        **options,
        "use_sliding_window": "sliding_attention" in options["layer_types"],
        "max_window_layers": options["layer_types"].count("full_attention"),
        "hidden_act": "silu",
    }


def from_qwen3(model: ModelConfig) -> Json:
    return {**from_qwen2(model), "attention_bias": attention_of(first_layer(model)).qkv_bias}


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", to_qwen2, from_qwen2, rules, DEFAULTS2, NULLABLE)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", to_qwen3, from_qwen3, rules, DEFAULTS3, NULLABLE)
