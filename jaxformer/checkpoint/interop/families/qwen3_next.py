"""Qwen3-Next (Qwen, 2025): Gated DeltaNet in three layers of four, gated attention in the fourth,
norms of 1 + w, and experts, one of them shared and gated. Gated DeltaNet: Yang et al., 2024,
arXiv:2412.06464. Gated attention: Qiu et al., 2025, arXiv:2505.06708."""

from jaxformer.checkpoint.interop.convolution import Taps
from jaxformer.checkpoint.interop.decoder import (
    PRE_NORMS,
    VECTOR,
    attention_of,
    attention_rules,
    first_mixer,
    heads,
    layer_types,
    layers_of,
    linear_rules,
    model_rules,
    model_section,
    need_parts,
    norm_rules,
    rms_norm,
)
from jaxformer.checkpoint.interop.experts import experts_of, ffn_rules
from jaxformer.checkpoint.interop.families.qwen_moe import (
    OF_EXPERTS,
    options,
    shared_experts,
    sparse_ffns,
)
from jaxformer.checkpoint.interop.family import INVERSE_FREQUENCIES, Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS, to_rope
from jaxformer.checkpoint.interop.rules import Linear, OnePlus, Rule, row, within
from jaxformer.model.config import ModelConfig
from jaxformer.model.layer import Layer
from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.model.mixers.gated_delta import GatedDeltaConfig

LINEAR, FULL = "linear_attention", "full_attention"

DEFAULTS: Json = {
    **ROPE_DEFAULTS,
    **OF_EXPERTS,
    "partial_rotary_factor": 0.25,
    "intermediate_size": 5632,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 10,
    "num_experts": 512,
    "norm_topk_prob": True,
    "layer_types": None,  # attention in the last of every few layers
}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("attention_bias", False)
    hub.need("use_sliding_window", False)
    norm = {"qk_norm": True, "qk_norm_eps": hub.number("rms_norm_eps")}
    attention = {**heads(hub), **norm, "output_gate": True}
    mixers = {LINEAR: _gated_delta(hub), FULL: attention}
    every = hub.count("full_attention_interval", 4)
    kinds = [LINEAR if (layer + 1) % every else FULL for layer in range(layers_of(hub))]
    of_layers = [mixers[kind] for kind in layer_types(hub, kinds, (LINEAR, FULL))]
    ffns = sparse_ffns(hub, shared_experts(hub))
    need_parts(hub, [*of_layers, *ffns], "gated_delta", "attention", "moe")
    return model_section(
        hub,
        mixers=of_layers,
        ffns=ffns,
        norm=rms_norm(hub, "pre"),
        positions=to_rope(hub, attention["head_dim"]),
    )


def _gated_delta(hub: HubConfig) -> Json:
    num_heads = hub.count("linear_num_value_heads")
    num_key_heads, head_dim = hub.count("linear_num_key_heads"), hub.count("linear_key_head_dim")
    hub.need_divisible("linear_num_value_heads", num_heads, "linear_num_key_heads", num_key_heads)
    return {
        "kind": "gated_delta",
        "num_heads": num_heads,
        "num_key_heads": num_key_heads,
        "head_dim": head_dim,
        "value_expansion": hub.count("linear_value_head_dim") / head_dim,
        "conv_width": hub.count("linear_conv_kernel_dim"),
        "norm_eps": hub.number("rms_norm_eps"),
    }


def from_config(model: ModelConfig) -> Json:
    attention, recurrence = (
        first_mixer(model, AttentionConfig),
        first_mixer(model, GatedDeltaConfig),
    )
    found = options(model, attention)
    return {
        **found,
        "rope_parameters": {"partial_rotary_factor": 1.0, **found["rope_parameters"]},
        "num_experts": experts_of(model).num_experts,
        "shared_expert_intermediate_size": experts_of(model).shared_width,
        "layer_types": [
            FULL if isinstance(layer.mixer, AttentionConfig) else LINEAR for layer in model.layers()
        ],
        "linear_conv_kernel_dim": recurrence.conv_width,
        "linear_key_head_dim": recurrence.head_dim,
        "linear_value_head_dim": recurrence.sizes.value,
        "linear_num_key_heads": recurrence.key_heads,
        "linear_num_value_heads": recurrence.num_heads,
    }


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [_layer_rules(layer) for layer in model.layers()], OnePlus())


def _layer_rules(layer: Layer) -> list[Rule]:
    if isinstance(layer.mixer, GatedDeltaConfig):
        mixing = within("linear_attn", "mixer", _gated_delta_rules(layer.mixer))
    else:
        mixing = within("self_attn", "mixer", attention_rules(attention_of(layer), OnePlus()))
    ffn = within("mlp", "ffn", ffn_rules(layer))
    return [*norm_rules(PRE_NORMS, OnePlus()), *mixing, *ffn]


def _gated_delta_rules(mixer: GatedDeltaConfig) -> list[Rule]:
    """A head of keys after another, each with the heads of values that it serves."""
    into = tuple(f"{part}/kernel" for part in ("query", "key", "value", "out/gate"))
    per_head, groups = ("beta/kernel", "decay/kernel"), mixer.key_heads
    return [
        Rule("in_proj_qkvz.weight", into, Linear(), groups=groups),
        Rule("in_proj_ba.weight", per_head, Linear(), groups=groups),
        row("conv1d.weight", "conv/kernel", Taps()),
        row("dt_bias", "dt_bias", VECTOR),
        row("A_log", "a_log", VECTOR),
        row("norm.weight", "out/scale", VECTOR),
        *linear_rules("out_proj", "out/output", inputs=2),
    ]


QWEN3_NEXT = Family(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    unused=rf"{INVERSE_FREQUENCIES}|mtp\..*",  # what predicts further tokens, as in transformers
)
