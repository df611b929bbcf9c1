"""RecurrentGemma (Botev et al., 2024, arXiv:2404.07839): Griffin's recurrent blocks and
sliding-window attention."""

import math

import ml_dtypes
import numpy as np

from jaxformer.checkpoint.interop.convolution import convolution_rules
from jaxformer.checkpoint.interop.decoder import (
    VECTOR,
    attention_rules,
    ffn_of,
    first_mixer,
    gated_ffn_rules,
    layers_of,
    linear_rules,
    model_section,
    norm_rules,
    rms_norm,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig, shown
from jaxformer.checkpoint.interop.rope import ROPE_DEFAULTS, from_rope, to_rope
from jaxformer.checkpoint.interop.rules import OnePlus, Rule, row, within
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.layer import Layer
from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.model.mixers.rglru import RGLRUConfig

NORMS = {"temporal_pre_norm": "mixer_norm", "channel_pre_norm": "ffn_norm"}
GATES = {"input_gate": "input_gate", "recurrent_gate": "recurrence_gate"}  # theirs: ours

DEFAULTS: Json = {
    **ROPE_DEFAULTS,
    "partial_rotary_factor": 0.5,
    "num_key_value_heads": None,  # as many as num_attention_heads
    "attention_window_size": 2048,
    "attention_bias": False,
    "lru_width": None,  # hidden_size
    "conv1d_width": 4,
    "block_types": ["recurrent", "recurrent", "attention"],
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "logits_soft_cap": 30.0,
    "tie_word_embeddings": True,
}


def to_config(hub: HubConfig) -> Json:
    hub.need("hidden_activation", "gelu_pytorch_tanh")
    hub.need("embeddings_scale_by_sqrt_dim", True)
    for key in ("w_init_variance_scale", "final_w_init_variance_scale"):
        hub.take(key, None)
    d_model, num_heads = hub.count("hidden_size"), hub.count("num_attention_heads")
    head_dim = d_model // num_heads
    hub.need("head_dim", head_dim)
    num_kv_heads = hub.count("num_key_value_heads", num_heads)
    hub.need_divisible("num_attention_heads", num_heads, "num_key_value_heads", num_kv_heads)
    width = hub.count("lru_width", d_model)
    hub.need_divisible("lru_width", width, "num_attention_heads", num_heads)
    attention = {
        "kind": "attention",
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "window": hub.count("attention_window_size", most=LARGEST),
        "qkv_bias": hub.flag("attention_bias"),
        "output_bias": True,
    }
    recurrent = {
        "kind": "rglru",
        "num_heads": num_heads,
        "expansion": width / d_model,
        "conv_width": hub.count("conv1d_width"),
    }
    mixers = {"recurrent": recurrent, "attention": attention}
    kinds = hub.listed("block_types")
    if unknown := [kind for kind in kinds if kind not in list(mixers)]:
        raise UserError(f"{hub.name} has block_types {shown(unknown)}; allowed: {list(mixers)}")
    return model_section(
        hub,
        mixers=[mixers[kinds[index % len(kinds)]] for index in range(layers_of(hub))],
        ffn={"kind": "geglu", "d_hidden": hub.count("intermediate_size") // 2, "bias": True},
        norm=rms_norm(hub, "pre"),
        positions=to_rope(hub, head_dim),
        scale_embeddings=_embedding_scale(d_model),
        logit_softcap=hub.number("logits_soft_cap"),
    )


def _embedding_scale(d_model: int) -> bool | float:
    """√d_model in bfloat16, whatever the weights' dtype, because the models were trained so."""
    root = math.sqrt(d_model)
    rounded = float(np.asarray(root, ml_dtypes.bfloat16))
    return True if rounded == root else rounded


def from_config(model: ModelConfig) -> Json:
    layers = model.pattern_layers()
    recurrent, attention = first_mixer(model, RGLRUConfig), first_mixer(model, AttentionConfig)
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": 2 * ffn_of(layers[0]).d_hidden,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.kv_heads,
        "attention_window_size": attention.window,
        "attention_bias": attention.qkv_bias,
        "lru_width": round(recurrent.expansion * model.d_model),
        "conv1d_width": recurrent.conv_width,
        "block_types": [
            "attention" if isinstance(layer.mixer, AttentionConfig) else "recurrent"
            for layer in layers
        ],
        "rms_norm_eps": model.norm.eps,
        "logits_soft_cap": model.logit_softcap,
        "rope_parameters": from_rope(layers[0].positions)["rope_parameters"],
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": model.tie_embeddings,
    }


def rules(model: ModelConfig) -> list[Rule]:
    rules = [row("model.embed_tokens.weight", "embedding")]
    for index, layer in enumerate(model.layers()):
        rules += within(f"model.layers.{index}", f"layers/{index}", _layer_rules(layer))
    return [*rules, row("model.final_norm.weight", "final_norm/scale", OnePlus())]


def _layer_rules(layer: Layer) -> list[Rule]:
    mixer = layer.mixer
    mixing = attention_rules(mixer) if isinstance(mixer, AttentionConfig) else _recurrence_rules()
    return [
        *norm_rules(NORMS, OnePlus()),
        *within("temporal_block", "mixer", mixing),
        *within("mlp_block", "ffn", gated_ffn_rules(layer)),
    ]


def _recurrence_rules() -> list[Rule]:
    rules = [*convolution_rules("conv_1d", "conv"), row("rg_lru.recurrent_param", "decay", VECTOR)]
    for theirs, ours in {"linear_x": "input", "linear_y": "gate", "linear_out": "output"}.items():
        rules += linear_rules(theirs, ours, bias=True)
    for theirs, ours in GATES.items():
        rules.append(row(f"rg_lru.{theirs}_weight", f"{ours}/kernel"))
        rules.append(row(f"rg_lru.{theirs}_bias", f"{ours}/bias"))
    return rules


RECURRENT_GEMMA = Family(
    "recurrent_gemma", "RecurrentGemmaForCausalLM", to_config, from_config, rules, DEFAULTS
)
