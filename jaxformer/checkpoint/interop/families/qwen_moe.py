"""Qwen2-MoE (Yang et al., 2024, arXiv:2407.10671): Qwen2 with experts, of which one is shared and
gated. Qwen3-MoE (Yang et al., 2025, arXiv:2505.09388): Qwen3 with experts, none of them shared. In
both, some layers may be dense."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    first_layer,
    gated_ffn,
    heads,
    layers_of,
    model_rules,
    model_section,
    rms_norm,
    sizes,
    window_options,
    windows,
)
from jaxformer.checkpoint.interop.experts import (
    dense_layers,
    experts_of,
    experts_section,
    layer_rules,
)
from jaxformer.checkpoint.interop.families.qwen import DEFAULTS2 as QWEN_DEFAULTS
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig
from jaxformer.checkpoint.interop.rope import from_rope, to_rope
from jaxformer.checkpoint.interop.rules import Rule
from jaxformer.model.config import ModelConfig
from jaxformer.model.mixers.attention import AttentionConfig

OF_EXPERTS: Json = {
    "decoder_sparse_step": 1,  # every so many layers has experts, the last of each few
    "mlp_only_layers": None,  # these have none
    "norm_topk_prob": False,
}
DEFAULTS2: Json = {
    **QWEN_DEFAULTS,
    **OF_EXPERTS,
    "intermediate_size": 5632,
    "num_key_value_heads": 16,
    "qkv_bias": True,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts_per_tok": 4,
    "num_experts": 60,
}
OF_QWEN2 = ("max_window_layers", "layer_types")
DEFAULTS3: Json = {
    **{
        key: QWEN_DEFAULTS[key]
        for key in QWEN_DEFAULTS
        if key not in ("max_window_layers", "layer_types")
    },
    **OF_EXPERTS,
    "intermediate_size": 6144,
    "num_key_value_heads": 4,
    "attention_bias": False,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
}
NULLABLE = ("sliding_window",)


def to_qwen2(hub: HubConfig) -> Json:
    mixer = {**heads(hub), "qkv_bias": hub.flag("qkv_bias")}
    return _section(
        hub, [{**mixer, "window": window} for window in _windows(hub)], shared_experts(hub)
    )


def _windows(hub: HubConfig) -> list[int | None]:
    """Each layer's window: with `use_sliding_window`, that of every other one of the first few."""
    is_used, first = hub.flag("use_sliding_window"), hub.count("max_window_layers", least=0)
    window = hub.count("sliding_window", None, least=int(is_used), most=LARGEST)
    sliding = [is_used and index % 2 == 0 and index < first for index in range(layers_of(hub))]
    types = ["sliding_attention" if each else "full_attention" for each in sliding]
    return windows(hub, window if is_used else None, types)


def to_qwen3(hub: HubConfig) -> Json:
    hub.need("use_sliding_window", False)
    hub.count("sliding_window", None, least=0, most=LARGEST)  # not used
    bias = hub.flag("attention_bias")
    norm = {"qk_norm": True, "qk_norm_eps": hub.number("rms_norm_eps")}
    mixer = {**heads(hub), "qkv_bias": bias, "output_bias": bias, **norm}
    # Older files name it like Qwen2-MoE's, and so does the default.
    count = "num_local_experts" if hub.has("num_local_experts") else "num_experts"
    return _section(hub, [mixer], _experts(hub, count))


def shared_experts(hub: HubConfig) -> Json:
    """Experts, and beside them one with a gate that every token visits."""
    width = hub.count("shared_expert_intermediate_size")
    shared = {"count": 1, "d_hidden": width, "gate": True}
    return {**_experts(hub, "num_experts"), "shared": shared}


def _experts(hub: HubConfig, count: str) -> Json:
    normalize = hub.flag("norm_topk_prob")
    return experts_section(hub, count, "moe_intermediate_size", normalize=normalize)


def _section(hub: HubConfig, mixers: list[Json], moe: Json) -> Json:
    hub.need("hidden_act", "silu")
    return model_section(
        hub,
        mixers=mixers,
        ffns=sparse_ffns(hub, moe),
        norm=rms_norm(hub, "pre"),
        positions=to_rope(hub, mixers[0]["head_dim"]),
    )


def sparse_ffns(hub: HubConfig, moe: Json) -> list[Json]:
    """The FFN of every layer: `moe`, or a dense one in some of them."""
    step, dense = hub.count("decoder_sparse_step"), hub.take("mlp_only_layers", [])
    hub.count("intermediate_size")  # of dense layers, if there are any
    return [
        gated_ffn(hub, "swiglu") if layer in dense or (layer + 1) % step else moe
        for layer in range(layers_of(hub))
    ]


def from_qwen2(model: ModelConfig) -> Json:
    windowed = window_options(model)
    return {
        **options(model),
        **windowed,
        "num_experts": experts_of(model).num_experts,
        "qkv_bias": attention_of(first_layer(model)).qkv_bias,
        "use_sliding_window": "sliding_attention" in windowed["layer_types"],
        "shared_expert_intermediate_size": experts_of(model).shared_width,
    }


def from_qwen3(model: ModelConfig) -> Json:
    return {
        **options(model),
        "num_local_experts": experts_of(model).num_experts,
        "attention_bias": attention_of(first_layer(model)).qkv_bias,
    }


def options(model: ModelConfig, mixer: AttentionConfig | None = None) -> Json:
    """The keys that these families share; for `mixer` see `sizes`."""
    moe, (dense, width) = experts_of(model), dense_layers(model)
    return {
        **sizes(model, width, mixer),
        **from_rope(first_layer(model).positions),
        "hidden_act": "silu",
        "mlp_only_layers": dense,
        "num_experts_per_tok": moe.experts_per_token,
        "moe_intermediate_size": moe.d_hidden,
        "norm_topk_prob": moe.normalize,
    }


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [layer_rules(layer) for layer in model.layers()])


QWEN2_MOE = Family(
    "qwen2_moe", "Qwen2MoeForCausalLM", to_qwen2, from_qwen2, rules, DEFAULTS2, NULLABLE
)
QWEN3_MOE = Family(
    "qwen3_moe", "Qwen3MoeForCausalLM", to_qwen3, from_qwen3, rules, DEFAULTS3, NULLABLE
)
