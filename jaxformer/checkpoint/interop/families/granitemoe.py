"""Granite 3 with experts (IBM, 2024) in every layer, all of them in one tensor."""

from jaxformer.checkpoint.interop.decoder import (
    PRE_NORMS,
    attention_of,
    attention_rules,
    first_layer,
    linear_rules,
    model_rules,
    norm_rules,
)
from jaxformer.checkpoint.interop.experts import experts_of, experts_section, stacked_expert_rules
from jaxformer.checkpoint.interop.families.granite import DEFAULTS as GRANITE_DEFAULTS
from jaxformer.checkpoint.interop.families.granite import (
    attention,
    multiplier_options,
    multipliers,
)
from jaxformer.checkpoint.interop.families.llama import options, section
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Rule, within
from jaxformer.model.config import ModelConfig
from jaxformer.model.layer import Layer

DEFAULTS: Json = {
    **{key: value for key, value in GRANITE_DEFAULTS.items() if key != "mlp_bias"},
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
EXPERTS = [
    *linear_rules("router.layer", "router"),
    *stacked_expert_rules("input_linear.weight", "output_linear.weight"),
]


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("mlp_bias", False)
    # The softmax of the chosen logits alone is that of all logits, normalised.
    ffn = experts_section(hub, "num_local_experts", "intermediate_size", normalize=True)
    return section(hub, attention(hub), ffn=ffn, **multipliers(hub))


def from_config(model: ModelConfig) -> Json:
    moe = experts_of(model)
    return {
        **options(model, moe.d_hidden),
        **multiplier_options(model),
        "attention_bias": attention_of(first_layer(model)).qkv_bias,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
    }


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [_layer_rules(layer) for layer in model.layers()])


def _layer_rules(layer: Layer) -> list[Rule]:
    return [
        *norm_rules(PRE_NORMS),
        *within("self_attn", "mixer", attention_rules(attention_of(layer))),
        *within("block_sparse_moe", "ffn", EXPERTS),
    ]


GRANITEMOE = Family("granitemoe", "GraniteMoeForCausalLM", to_config, from_config, rules, DEFAULTS)
