"""Qwen2 (Yang et al., 2024, arXiv:2407.10671): biases of queries, keys and values. Qwen3 (Yang et
al., 2025, arXiv:2505.09388): norms of queries and keys instead. Both: windows in later layers."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    first_layer,
    gated_ffn,
    heads,
    model_section,
    rms_norm,
    sizes,
    window_options,
    windows,
)
from jaxformer.checkpoint.interop.families.llama import rules
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rope import from_rope, to_rope
from jaxformer.model.config import ModelConfig


def to_qwen2(hub: HubConfig) -> Json:
    return _to_config(hub, {"qkv_bias": True})


def to_qwen3(hub: HubConfig) -> Json:
    bias = hub.take("attention_bias", False)
    norm = {"qk_norm": True, "qk_norm_eps": hub.take("rms_norm_eps", 1e-6)}
    return _to_config(hub, {"qkv_bias": bias, "output_bias": bias, **norm})


def _to_config(hub: HubConfig, options: Json) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("use_mrope", False)
    mixer = {**heads(hub), **options}
    return model_section(
        hub,
        tied=False,
        mixers=[{**mixer, "window": window} for window in _windows(hub)],
        ffn=gated_ffn(hub, "swiglu"),
        norm=rms_norm(hub, "pre"),
        positions=to_rope(hub, mixer["head_dim"]),
    )


def _windows(hub: HubConfig) -> list[int | None]:
    num_layers, first = hub.count("num_hidden_layers"), hub.take("max_window_layers", 28)
    is_used = hub.take("use_sliding_window", False)
    full = min(first, num_layers) if is_used and hub.take("sliding_window", None) else num_layers
    types = ["full_attention"] * full + ["sliding_attention"] * (num_layers - full)
    return windows(hub, types)


def from_qwen2(model: ModelConfig) -> Json:
    layer, options = first_layer(model), window_options(model)
    return {
        **sizes(model),
        **from_rope(layer.positions),
        **options,
        "use_sliding_window": options["sliding_window"] is not None,
        "max_window_layers": options["layer_types"].count("full_attention"),
        "hidden_act": "silu",
    }


def from_qwen3(model: ModelConfig) -> Json:
    return {**from_qwen2(model), "attention_bias": attention_of(first_layer(model)).qkv_bias}


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", to_qwen2, from_qwen2, rules)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", to_qwen3, from_qwen3, rules)
