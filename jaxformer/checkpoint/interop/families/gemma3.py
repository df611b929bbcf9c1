"""Gemma 3's text models (2025, arXiv:2503.19786): Gemma 2 with norms of queries and keys for the
soft-caps, and in five of six layers a window and positions of another base."""

from jaxformer.checkpoint.interop.decoder import (
    gated_ffn,
    heads,
    layers_of,
    model_section,
    rms_norm,
    windows,
)
from jaxformer.checkpoint.interop.families.gemma import TANH_GELU, rules, windowed_options
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS
from jaxformer.checkpoint.interop.rope_of_layers import from_ropes, to_ropes
from jaxformer.model.config import ModelConfig

DEFAULTS: Json = {
    **ROPE_DEFAULTS,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,  # of layers with a window
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": TANH_GELU,
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,  # a window in all but the last of every sliding_window_pattern layers
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
}
NULLABLE = ("sliding_window", "use_bidirectional_attention")


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_activation", TANH_GELU)
    hub.need("use_bidirectional_attention", False)
    hub.need("attn_logit_softcapping", None)  # its class has the key, and its model no such cap
    bias = hub.flag("attention_bias")
    mixer = {
        **heads(hub),
        "qkv_bias": bias,
        "output_bias": bias,
        "qk_norm": True,
        "qk_norm_eps": hub.number("rms_norm_eps"),
        "scale": hub.number("query_pre_attn_scalar") ** -0.5,
    }
    found = _windows(hub)
    thetas = {
        "full_attention": hub.number("rope_theta"),
        "sliding_attention": hub.number("rope_local_base_freq"),
    }
    return model_section(
        hub,
        mixers=[{**mixer, "window": window} for window in found],
        layer_positions=to_ropes(hub, mixer["head_dim"], found, thetas),
        ffn=gated_ffn(hub, "geglu"),
        norm=rms_norm(hub, "sandwich"),
        scale_embeddings=True,
        logit_softcap=hub.number("final_logit_softcapping", None),
    )


def _windows(hub: HubConfig) -> list[int | None]:
    window = hub.count("sliding_window", None, most=LARGEST)
    period = hub.count("sliding_window_pattern", 6)
    full = [(layer + 1) % period == 0 for layer in range(layers_of(hub))]
    return windows(hub, window, ["full_attention" if e else "sliding_attention" for e in full])


def from_config(model: ModelConfig) -> Json:
    return {**windowed_options(model), **from_ropes(model)}


GEMMA3_TEXT = Family(
    "gemma3_text", "Gemma3ForCausalLM", to_config, from_config, rules, DEFAULTS, NULLABLE
)
