"""OLMoE (Muennighoff et al., 2024, arXiv:2409.02060): fine-grained experts whose gates are not
normalised, and norms of all queries and all keys."""

from jaxformer.checkpoint.interop.decoder import attention_of, first_layer, model_rules
from jaxformer.checkpoint.interop.experts import experts_of, experts_section, layer_rules
from jaxformer.checkpoint.interop.families.llama import options, section
from jaxformer.checkpoint.interop.families.olmo2 import attention
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS
from jaxformer.checkpoint.interop.rules import Rule
from jaxformer.model.config import ModelConfig

DEFAULTS: Json = {
    **ROPE_DEFAULTS,
    "num_key_value_heads": None,  # as many as num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "num_experts_per_tok": 8,
    "num_experts": 64,
    "norm_topk_prob": False,
}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("clip_qkv", None)
    normalize = hub.flag("norm_topk_prob")
    ffn = experts_section(hub, "num_experts", "intermediate_size", normalize=normalize)
    return section(hub, attention(hub), ffn=ffn)


def from_config(model: ModelConfig) -> Json:
    moe = experts_of(model)
    return {
        **options(model, moe.d_hidden),
        "attention_bias": attention_of(first_layer(model)).qkv_bias,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "norm_topk_prob": moe.normalize,
    }


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [layer_rules(layer) for layer in model.layers()])


OLMOE = Family("olmoe", "OlmoeForCausalLM", to_config, from_config, rules, DEFAULTS)
