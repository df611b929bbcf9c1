"""Mixtral (Jiang et al., 2024, arXiv:2401.04088): Mistral, with experts in every layer."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    first_layer,
    heads,
    model_rules,
)
from jaxformer.checkpoint.interop.experts import experts_of, experts_section, layer_rules
from jaxformer.checkpoint.interop.families.llama import options, section
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS
from jaxformer.checkpoint.interop.rules import Rule
from jaxformer.model.config import ModelConfig

DEFAULTS: Json = {
    **ROPE_DEFAULTS,
    "rope_theta": 1000000.0,
    "num_key_value_heads": 8,
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}
NAMES = {"gate": "w1", "in": "w3", "out": "w2"}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("attention_bias", False)
    mixer = {**heads(hub), "window": hub.count("sliding_window", None, most=LARGEST)}
    ffn = experts_section(hub, "num_local_experts", "intermediate_size", normalize=True)
    return section(hub, mixer, ffn=ffn)


def from_config(model: ModelConfig) -> Json:
    moe = experts_of(model)
    return {
        **options(model, moe.d_hidden),
        "sliding_window": attention_of(first_layer(model)).window,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
    }


def rules(model: ModelConfig) -> list[Rule]:
    layers = [layer_rules(layer, "block_sparse_moe", NAMES) for layer in model.layers()]
    return model_rules(model, layers)


MIXTRAL = Family("mixtral", "MixtralForCausalLM", to_config, from_config, rules, DEFAULTS)
