"""Phi-3 (Abdin et al., 2024, arXiv:2404.14219) and Phi-4-mini (2025, arXiv:2503.01743): Llama with
queries, keys and values as one matrix, and gate and input of the FFN as one, perhaps with a window,
LongRoPE and partial RoPE."""

from jaxformer.checkpoint.interop.decoder import (
    PRE_NORMS,
    attention_of,
    first_layer,
    heads,
    linear_rules,
    model_rules,
    norm_rules,
)
from jaxformer.checkpoint.interop.families.llama import options, section
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS, to_rope
from jaxformer.checkpoint.interop.rules import Linear, Rule
from jaxformer.model.config import ModelConfig

LAYER = [
    *norm_rules(PRE_NORMS),
    Rule(
        "self_attn.qkv_proj.weight",
        ("mixer/query/kernel", "mixer/key/kernel", "mixer/value/kernel"),
        Linear(),
    ),
    *linear_rules("self_attn.o_proj", "mixer/output", inputs=2),
    Rule("mlp.gate_up_proj.weight", ("ffn/gate/kernel", "ffn/in/kernel"), Linear()),
    *linear_rules("mlp.down_proj", "ffn/out"),
]


# Phi-4-mini's file has these, which transformers does not read, at the values of what it does.
UNUSED = {"interpolate_factor": 1, "full_attn_mod": 1, "lm_head_bias": False}
ROPE_TYPES = ("default", "longrope", "su")
DEFAULTS: Json = {
    **ROPE_DEFAULTS,
    "num_key_value_heads": None,  # as many as num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,  # even where rope_scaling has another
    "partial_rotary_factor": 1.0,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")
    hub.need("attention_bias", False)
    for key, unused in UNUSED.items():
        hub.need(key, unused)
    mixer = {**heads(hub), "window": hub.count("sliding_window", None, most=LARGEST)}
    return section(hub, mixer, positions=to_rope(hub, mixer["head_dim"], kinds=ROPE_TYPES))


def from_config(model: ModelConfig) -> Json:
    written = options(model)
    scaling, original = written["rope_parameters"], "original_max_position_embeddings"
    return {
        **written,
        **({original: scaling[original]} if original in scaling else {}),
        "sliding_window": attention_of(first_layer(model)).window,
    }


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [LAYER] * model.num_layers)


PHI3 = Family("phi3", "Phi3ForCausalLM", to_config, from_config, rules, DEFAULTS)
