"""Kimi Linear (Kimi Team, 2025, arXiv:2510.26692): Kimi Delta Attention in three layers of four,
latent attention without positions in the fourth, and experts that a sigmoid scores and biases
balance."""

from dataclasses import dataclass

import numpy as np

from jaxformer.checkpoint.interop.convolution import Taps
from jaxformer.checkpoint.interop.decoder import (
    PRE_NORMS,
    VECTOR,
    first_mixer,
    gated_ffn,
    gated_ffn_rules,
    layer_types,
    layers_of,
    linear_rules,
    mixer_of,
    model_rules,
    model_section,
    need_parts,
    norm_rules,
    rms_norm,
    sizes_of_any,
)
from jaxformer.checkpoint.interop.experts import (
    dense_layers,
    expert_rules,
    experts_of,
    experts_section,
    groups_section,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.latent import latent_attention, latent_rules, latent_sizes
from jaxformer.checkpoint.interop.rules import Linear, Rule, Shape, row, within
from jaxformer.errors import UserError
from jaxformer.model.channel_mixers.moe import MoEConfig
from jaxformer.model.config import ModelConfig
from jaxformer.model.layer import Layer
from jaxformer.model.mixers.kda import KDAConfig
from jaxformer.model.mixers.latent_attention import LatentAttentionConfig

LINEAR, FULL = "linear_attention", "full_attention"
FULL_LAYERS, KDA_LAYERS = "full_attn_layers", "kda_layers"  # both count layers from 1
EXPERTS = {"gate": "w1", "in": "w3", "out": "w2"}
# The names in published files, which precede those of transformers' class.
CLASS_NAMES = {
    "num_experts": "num_local_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
    "num_expert_group": "n_group",
    "moe_renormalize": "norm_topk_prob",
}
UNREAD = (
    *("head_dim", "max_position_embeddings", "model_max_length"),
    *("rope_theta", "rope_scaling", "rope_parameters"),  # no layer has positions
)

DEFAULTS: Json = {
    "num_key_value_heads": 32,  # null: as many as num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 1048576,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "linear_head_dim": 128,
    "linear_num_heads": 32,
    "linear_conv_kernel_dim": 4,
    "layer_types": None,
    "mlp_layer_types": None,  # dense in the first_k_dense_replace lowest layers
    "moe_intermediate_size": 1024,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.446,
}


# From config.json -------------------------------------------------------------------------------


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("tie_word_embeddings", False)  # transformers does not tie them
    hub.need("mla_use_nope", True)
    hub.need("num_nextn_predict_layers", 0)
    for key in UNREAD:
        hub.take(key, None)
    delta = _delta_options(hub)
    kda = {
        "kind": "kda",
        "num_heads": delta.count("num_heads"),
        "head_dim": delta.count("head_dim"),
        "conv_width": delta.count("short_conv_kernel_size"),
        "gate_bias": False,
        "norm_eps": hub.number("rms_norm_eps"),
    }
    mixers = {LINEAR: kda, FULL: latent_attention(hub)}
    kinds = layer_types(hub, _default_kinds(delta, layers_of(hub)), (LINEAR, FULL))
    delta.finish()
    of_layers, ffns = [mixers[kind] for kind in kinds], _ffns(hub)
    need_parts(hub, [*of_layers, *ffns], "kda", "latent_attention", "moe")
    return model_section(
        hub,
        mixers=of_layers,
        ffns=ffns,
        norm=rms_norm(hub, "pre"),
        positions={"kind": "none"},
    )


def _delta_options(hub: HubConfig) -> HubConfig:
    """The section of Kimi Delta Attention, whose keys precede those outside of it."""
    outside = {
        "head_dim": hub.count("linear_head_dim"),
        "num_heads": hub.count("linear_num_heads"),
        "short_conv_kernel_size": hub.count("linear_conv_kernel_dim"),
    }
    section = hub.section("linear_attn_config")
    return HubConfig(section, f"{hub.name}: linear_attn_config", outside)


def _default_kinds(delta: HubConfig, num_layers: int) -> list[str]:
    """The kind of every layer, if the file has no `layer_types`.

    Raises:
        UserError: the two lists do not have every layer once.
    """
    if not (delta.has(FULL_LAYERS) and delta.has(KDA_LAYERS)):
        for key in (FULL_LAYERS, KDA_LAYERS):
            delta.take(key, None)
        return [FULL if layer and layer % 4 == 0 else LINEAR for layer in range(num_layers)]
    full, linear = delta.listed(FULL_LAYERS), delta.listed(KDA_LAYERS)
    every = range(1, num_layers + 1)
    if sorted([*full, *linear]) != list(every):
        raise UserError(
            f"{delta.name} has {FULL_LAYERS} and {KDA_LAYERS} that do not have every layer from 1 "
            f"to {num_layers} once"
        )
    return [FULL if layer in full else LINEAR for layer in every]


def _ffns(hub: HubConfig) -> list[Json]:
    """The FFN of every layer: experts, or a dense one below them."""
    hub.need("moe_layer_freq", 1)
    hub.need("moe_router_activation_func", "sigmoid")
    hub.need("use_grouped_topk", True)
    count, chosen, shared, groups, normalize = (_key(hub, key) for key in CLASS_NAMES)
    moe = {
        **experts_section(
            hub, count, "moe_intermediate_size", chosen=chosen, normalize=hub.flag(normalize)
        ),
        **groups_section(hub, count, groups),
        "score": "sigmoid",
        "group_score": "sum_of_two",
        "scale": hub.number("routed_scaling_factor"),
        "shared": {"count": hub.count(shared)},
        "balance": {"bias_rate": 0.0},  # fine-tuning keeps the balance of pre-training
    }
    ffns = {"dense": gated_ffn(hub, "swiglu"), "sparse": moe}
    dense = hub.count("first_k_dense_replace", 1, least=0)
    kinds = ["dense" if layer < dense else "sparse" for layer in range(layers_of(hub))]
    return [ffns[kind] for kind in layer_types(hub, kinds, tuple(ffns), "mlp_layer_types")]


def _key(hub: HubConfig, published: str) -> str:
    return published if hub.has(published) else CLASS_NAMES[published]


# To config.json ---------------------------------------------------------------------------------


def from_config(model: ModelConfig) -> Json:
    moe, layers = experts_of(model), model.layers()
    kda, latent = first_mixer(model, KDAConfig), first_mixer(model, LatentAttentionConfig)
    dense, width = dense_layers(model)
    kinds = [isinstance(layer.mixer, LatentAttentionConfig) for layer in layers]
    return {
        **sizes_of_any(model, width),
        "hidden_act": "silu",
        **latent_sizes(latent),
        "mla_use_nope": True,
        "linear_attn_config": {
            "num_heads": kda.num_heads,
            "head_dim": kda.head_dim,
            "short_conv_kernel_size": kda.conv_width,
            FULL_LAYERS: [number for number, is_full in enumerate(kinds, 1) if is_full],
            KDA_LAYERS: [number for number, is_full in enumerate(kinds, 1) if not is_full],
        },
        "first_k_dense_replace": len(dense),
        "moe_intermediate_size": moe.d_hidden,
        "moe_router_activation_func": "sigmoid",
        "num_experts": moe.num_experts,
        "num_experts_per_token": moe.experts_per_token,
        "num_shared_experts": moe.shared_width // moe.d_hidden,
        "num_expert_group": moe.groups,
        "topk_group": moe.kept_groups,
        "moe_renormalize": moe.normalize,
        "routed_scaling_factor": moe.scale,
    }


# Tensors ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerHead:
    """A number per head, which theirs has as [1, 1, heads, 1]."""

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        return theirs.reshape(shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(1, 1, -1, 1)


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [_layer_rules(layer) for layer in model.layers()])


def _layer_rules(layer: Layer) -> list[Rule]:
    if isinstance(layer.mixer, KDAConfig):
        mixing = _kda_rules()
    else:
        mixing = latent_rules(mixer_of(layer, LatentAttentionConfig), Linear())
    if isinstance(layer.ffn, MoEConfig):
        experts = expert_rules(layer.ffn, EXPERTS, shared="shared_experts")
        ffn = within("block_sparse_moe", "ffn", experts)
    else:
        ffn = within("mlp", "ffn", gated_ffn_rules(layer))
    return [*norm_rules(PRE_NORMS), *within("self_attn", "mixer", mixing), *ffn]


def _kda_rules() -> list[Rule]:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "beta": "b_proj"}
    names |= {"decay_in": "f_a_proj", "decay_out": "f_b_proj"}
    names |= {"gate_in": "g_a_proj", "gate_out": "g_b_proj"}
    others = ("k_conv1d.weight", "v_conv1d.weight")
    return [
        *(rule for ours, theirs in names.items() for rule in linear_rules(theirs, ours)),
        Rule("q_conv1d.weight", ("conv/kernel",), Taps(), beside=others),
        row("A_log", "a_log", PerHead()),
        row("dt_bias", "dt_bias", VECTOR),
        *norm_rules({"o_norm": "norm"}),
        *linear_rules("o_proj", "output", inputs=2),
    ]


KIMI_LINEAR = Family(
    "kimi_linear",
    "KimiLinearForCausalLM",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    nullable=("num_key_value_heads",),
    aliases=((".mlp.", ".block_sparse_moe."),),  # of dense layers that transformers has written
)
