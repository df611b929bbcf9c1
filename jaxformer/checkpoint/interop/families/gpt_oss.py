"""gpt-oss (OpenAI, 2025, arXiv:2508.10925): biases everywhere, a logit per head of attention to
nothing, a window in every other layer, and experts with a limited, gated activation."""

from jaxformer.checkpoint.interop.decoder import (
    PRE_NORMS,
    attention_of,
    attention_rules,
    first_layer,
    heads,
    linear_rules,
    model_rules,
    model_section,
    norm_rules,
    rms_norm,
    sizes,
    window_options,
    windows,
)
from jaxformer.checkpoint.interop.experts import experts_of, experts_section
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS, from_rope, to_rope
from jaxformer.checkpoint.interop.rules import Rule, row, within
from jaxformer.model.channel_mixers.moe import MoEConfig
from jaxformer.model.config import ModelConfig
from jaxformer.model.layer import Layer

YARN: Json = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
DEFAULTS: Json = {
    **ROPE_DEFAULTS,
    "rope_theta": 150000.0,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "sliding_window": 128,
    "layer_types": None,  # a window in every other layer, the first among them
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_act", "silu")  # and yet the activation is its own
    hub.need("swiglu_alpha", 1.702)
    for unread in ("experts_per_token", "initial_context_length"):  # by transformers as well
        hub.take(unread, None)
    bias = hub.flag("attention_bias")
    mixer = {**heads(hub), "qkv_bias": bias, "output_bias": bias, "sink_logit": True}
    window = hub.count("sliding_window", None, most=LARGEST)
    types = ["sliding_attention", "full_attention"]
    moe = experts_section(hub, "num_local_experts", "intermediate_size", normalize=True)
    activation = {"activation": "quick_geglu", "clamp": hub.number("swiglu_limit")}
    return model_section(
        hub,
        mixers=[{**mixer, "window": window} for window in windows(hub, window, types)],
        ffn={**moe, **activation, "bias": True, "router_bias": True},
        norm=rms_norm(hub, "pre"),
        positions=to_rope(hub, mixer["head_dim"], default=YARN),
    )


def from_config(model: ModelConfig) -> Json:
    moe, layer = experts_of(model), first_layer(model)
    return {
        **sizes(model, moe.d_hidden),
        **from_rope(layer.positions),
        **window_options(model),
        "hidden_act": "silu",
        "attention_bias": attention_of(layer).qkv_bias,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "swiglu_limit": moe.clamp,
    }


def rules(model: ModelConfig) -> list[Rule]:
    return model_rules(model, [_layer_rules(layer) for layer in model.layers()])


def _layer_rules(layer: Layer) -> list[Rule]:
    return [
        *norm_rules(PRE_NORMS),
        *within("self_attn", "mixer", attention_rules(attention_of(layer))),
        *within("mlp", "ffn", _expert_rules(layer)),
    ]


def _expert_rules(layer: Layer) -> list[Rule]:
    """Each tensor holds all experts; columns of gate and input alternate."""
    assert isinstance(layer.ffn, MoEConfig)
    pairs, together = layer.ffn.d_hidden, ("experts_gate/{}", "experts_in/{}")
    kernels, biases = (tuple(path.format(part) for path in together) for part in ("kernel", "bias"))
    return [
        *linear_rules("router", "router", bias=True),
        Rule("experts.gate_up_proj", kernels, axis=2, groups=pairs),
        Rule("experts.gate_up_proj_bias", biases, axis=1, groups=pairs),
        row("experts.down_proj", "experts_out/kernel"),
        row("experts.down_proj_bias", "experts_out/bias"),
    ]


GPT_OSS = Family("gpt_oss", "GptOssForCausalLM", to_config, from_config, rules, DEFAULTS)
