"""Gemma (2024, arXiv:2403.08295) and Gemma 2 (2024, arXiv:2408.00118): scaled embeddings, norms of
1 + w, GeGLU. Gemma 2: a norm on either side, soft-caps, a window in every other layer."""

from jaxformer.checkpoint.interop.decoder import (
    PRE_NORMS,
    attention_of,
    first_layer,
    gated_ffn,
    heads,
    layer_rules,
    model_rules,
    model_section,
    rms_norm,
    root,
    sizes,
    usual_scale,
    window_options,
    windows,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig, shown
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS, from_rope, to_rope
from jaxformer.checkpoint.interop.rules import OnePlus, Rule
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig

SANDWICH_NORMS = {
    "input_layernorm": "mixer_norm",
    "post_attention_layernorm": "mixer_norm_after",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_norm_after",
}
TANH_GELU = "gelu_pytorch_tanh"


_SHARED: Json = {
    **ROPE_DEFAULTS,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": None,
}
DEFAULTS: Json = {**_SHARED, "num_key_value_heads": 16, "hidden_act": TANH_GELU}
DEFAULTS2: Json = {
    **_SHARED,
    "num_key_value_heads": 4,
    "hidden_activation": TANH_GELU,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,  # a window in every other layer, the first among them
    "attn_logit_softcapping": 50.0,  # null: no cap
    "final_logit_softcapping": 30.0,  # null: no cap
}
NULLABLE2 = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


def to_gemma(hub: HubConfig) -> Json:
    hub.need("hidden_act", TANH_GELU, "gelu")  # the first files say gelu, and mean the tanh form
    hub.need("hidden_activation", TANH_GELU)
    mixer = _mixer(hub)
    return model_section(
        hub,
        mixers=[mixer],
        ffn=gated_ffn(hub, "geglu"),
        norm=rms_norm(hub, "pre"),
        positions=to_rope(hub, mixer["head_dim"]),
        scale_embeddings=True,
    )


def to_gemma2(hub: HubConfig) -> Json:
    hub.need("hidden_activation", TANH_GELU)
    hub.need("hidden_act", TANH_GELU)
    mixer = _mixer(hub)
    mixer["scale"] = hub.number("query_pre_attn_scalar") ** -0.5
    mixer["logit_softcap"] = hub.number("attn_logit_softcapping", None)
    window = hub.count("sliding_window", None, most=LARGEST)
    if (twin := hub.take("sliding_window_size", window)) != window:
        raise UserError(
            f"{hub.name} has sliding_window_size {shown(twin)}, but sliding_window {window}; "
            f"transformers reads sliding_window alone: make them equal, or remove the other"
        )
    types = ["sliding_attention", "full_attention"]
    return model_section(
        hub,
        mixers=[{**mixer, "window": window} for window in windows(hub, window, types)],
        ffn=gated_ffn(hub, "geglu"),
        norm=rms_norm(hub, "sandwich"),
        positions=to_rope(hub, mixer["head_dim"]),
        scale_embeddings=True,
        logit_softcap=hub.number("final_logit_softcapping", None),
    )


def _mixer(hub: HubConfig) -> Json:
    hub.need("use_bidirectional_attention", False)
    bias = hub.flag("attention_bias")
    return {**heads(hub), "qkv_bias": bias, "output_bias": bias}


def from_gemma(model: ModelConfig) -> Json:
    layer = first_layer(model)
    return {
        **sizes(model),
        **from_rope(layer.positions),
        "hidden_act": TANH_GELU,
        "attention_bias": attention_of(layer).qkv_bias,
    }


def from_gemma2(model: ModelConfig) -> Json:
    layer = first_layer(model)
    return {
        **windowed_options(model),
        **from_rope(layer.positions),
        "attn_logit_softcapping": attention_of(layer).logit_softcap,
    }


def windowed_options(model: ModelConfig) -> Json:
    """The keys that Gemma 2 and 3 share."""
    mixer = attention_of(first_layer(model))
    scale = mixer.scale or usual_scale(mixer.head_size(model.d_model))
    return {
        **sizes(model),
        **window_options(model),
        "hidden_activation": TANH_GELU,
        "attention_bias": mixer.qkv_bias,
        "query_pre_attn_scalar": root(scale, -0.5),
        "final_logit_softcapping": model.logit_softcap,
    }


def rules(model: ModelConfig) -> list[Rule]:
    norms = SANDWICH_NORMS if model.norm.placement == "sandwich" else PRE_NORMS
    layers = [layer_rules(layer, norms, OnePlus()) for layer in model.layers()]
    return model_rules(model, layers, OnePlus())


GEMMA = Family("gemma", "GemmaForCausalLM", to_gemma, from_gemma, rules, DEFAULTS)
GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", to_gemma2, from_gemma2, rules, DEFAULTS2, NULLABLE2)
