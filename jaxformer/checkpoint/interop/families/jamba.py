"""Jamba (Lieber et al., 2024, arXiv:2403.19887): layers of Mamba with norms inside, a layer of
attention without positions in each few, and experts in every second."""

from collections.abc import Sequence

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    attention_rules,
    first_mixer,
    gated_ffn,
    heads,
    layers_of,
    model_rules,
    model_section,
    need_parts,
    norm_rules,
    sizes,
)
from jaxformer.checkpoint.interop.experts import experts_section, ffn_rules
from jaxformer.checkpoint.interop.families.mamba import MIXER
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Rule, within
from jaxformer.errors import UserError
from jaxformer.model.channel_mixers.moe import MoEConfig
from jaxformer.model.config import ModelConfig
from jaxformer.model.layer import Layer
from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.model.mixers.mamba import MambaConfig
from jaxformer.model.norms import NormConfig

NORMS = {"input_layernorm": "mixer_norm", "pre_ff_layernorm": "ffn_norm"}
INNER_NORMS = {"dt_layernorm": "dt_norm", "b_layernorm": "b_norm", "c_layernorm": "c_norm"}
EPSILON = NormConfig().eps  # of the norms inside of Mamba
UNREAD = (  # which kernel computes, and of how many tokens logits are returned
    "calc_logits_for_entire_prompt",
    "max_position_embeddings",
    "num_logits_to_keep",
    "use_associative_scan",
    "use_mamba_kernels",
    "use_mambapy",
)

DEFAULTS: Json = {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 262144,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
    "num_experts": 16,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": "auto",  # hidden_size / 16, rounded up
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}


# From config.json -------------------------------------------------------------------------------


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("mamba_conv_bias", True)
    hub.need("mamba_proj_bias", False)
    hub.need("mamba_inner_layernorms", True)
    for key in UNREAD:
        hub.take(key, None)
    is_auto = hub.take("mamba_dt_rank") == "auto"
    mamba = {
        "kind": "mamba",
        "expansion": float(hub.count("mamba_expand")),
        "state_size": hub.count("mamba_d_state"),
        "conv_width": hub.count("mamba_d_conv"),
        "dt_rank": None if is_auto else hub.count("mamba_dt_rank"),
        "inner_norms": True,
    }
    attention, dense, moe = heads(hub), gated_ffn(hub, "swiglu"), _experts(hub)
    mixers = [attention if chosen else mamba for chosen in _chosen(hub, "attn")]
    need_parts(hub, mixers, "mamba", "attention")
    return model_section(
        hub,
        mixers=mixers,
        ffns=[moe or dense if chosen else dense for chosen in _chosen(hub, "expert")],
        norm={"eps": hub.need("rms_norm_eps", EPSILON)},
        positions={"kind": "none"},
    )


def _experts(hub: HubConfig) -> Json | None:
    """None for one expert, which is a dense FFN."""
    if hub.count("num_experts") == 1:
        hub.count("num_experts_per_tok")
        return None
    return experts_section(hub, "num_experts", "intermediate_size", normalize=False)


def _chosen(hub: HubConfig, kind: str) -> list[bool]:
    """Whether a layer is of a kind, for every layer.

    Raises:
        UserError: no layer of a period is.
    """
    period = hub.count(f"{kind}_layer_period")
    offset = hub.count(f"{kind}_layer_offset", least=0)
    if offset >= period:
        raise UserError(
            f"{hub.name} has {kind}_layer_offset {offset}; allowed: less than its "
            f"{kind}_layer_period {period}"
        )
    return [layer % period == offset for layer in range(layers_of(hub))]


# To config.json ---------------------------------------------------------------------------------


def from_config(model: ModelConfig) -> Json:
    attention, mamba = first_mixer(model, AttentionConfig), first_mixer(model, MambaConfig)
    layers = model.layers()
    moe = next((layer.ffn for layer in layers if isinstance(layer.ffn, MoEConfig)), None)
    widths = {getattr(layer.ffn, "d_hidden", None) for layer in layers}
    if len(widths) > 1 or mamba.expansion != round(mamba.expansion):
        raise UserError(
            f"FFNs of {widths} features and Mamba's expansion {mamba.expansion:g}, where this "
            f"family has one width for all FFNs, and a whole number"
        )
    experts = {} if moe is None else {"num_experts_per_tok": moe.experts_per_token}
    return {
        **sizes(model, widths.pop(), attention),
        "hidden_act": "silu",
        "num_experts": 1 if moe is None else moe.num_experts,
        **experts,
        **_period("expert", [isinstance(layer.ffn, MoEConfig) for layer in layers]),
        **_period("attn", [isinstance(layer.mixer, AttentionConfig) for layer in layers]),
        "mamba_d_state": mamba.state_size,
        "mamba_d_conv": mamba.conv_width,
        "mamba_expand": round(mamba.expansion),
        "mamba_dt_rank": mamba.rank(model.d_model),
    }


def _period(kind: str, chosen: Sequence[bool]) -> Json:
    """The keys for layers that are of a kind; those for none of them if none are."""
    places = [layer for layer, is_of_kind in enumerate(chosen) if is_of_kind]
    offset = places[0] if places else len(chosen)
    period = places[1] - places[0] if len(places) > 1 else len(chosen) + 1
    return {f"{kind}_layer_period": period, f"{kind}_layer_offset": offset}


# Tensors ----------------------------------------------------------------------------------------


def rules(model: ModelConfig) -> list[Rule]:
    layers = [_layer_rules(layer) for layer in model.layers()]
    return model_rules(model, layers, final_norm="final_layernorm")


def _layer_rules(layer: Layer) -> list[Rule]:
    if isinstance(layer.mixer, MambaConfig):
        mixing = within("mamba", "mixer", [*MIXER, *norm_rules(INNER_NORMS)])
    else:
        mixing = within("self_attn", "mixer", attention_rules(attention_of(layer)))
    ffn = within("feed_forward", "ffn", ffn_rules(layer, router="router"))
    return [*norm_rules(NORMS), *mixing, *ffn]


JAMBA = Family("jamba", "JambaForCausalLM", to_config, from_config, rules, DEFAULTS)
