"""What Llama and its descendants share: names of tensors and of options."""

import math
from collections.abc import Sequence
from typing import Any

from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import VECTOR, Linear, Rule, Transform, row, within
from jaxformer.model.config import Layer, ModelConfig
from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.schema import UserError

Json = dict[str, Any]

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
GATED_FFN = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}


def linear(theirs: str, ours: str, bias: bool = False, inputs: int = 1) -> list[Rule]:
    """A linear map, whose bias has our dimensions after the first `inputs` as one."""
    rules = [row(f"{theirs}.weight", f"{ours}/kernel", Linear(inputs))]
    return [*rules, row(f"{theirs}.bias", f"{ours}/bias", VECTOR)] if bias else rules


def attention_rules(mixer: AttentionConfig, names: dict[str, str] = ATTENTION) -> list[Rule]:
    """A matrix each for queries, keys, values and the output."""
    rules: list[Rule] = []
    for ours in ("query", "key", "value"):
        rules += linear(names[ours], ours, mixer.qkv_bias)
    rules += linear(names["output"], "output", mixer.output_bias, inputs=2)
    return rules


def gated_ffn_rules(bias: bool) -> list[Rule]:
    return [rule for ours, theirs in GATED_FFN.items() for rule in linear(theirs, ours, bias)]


def norm_rules(names: dict[str, str], transform: Transform = VECTOR) -> list[Rule]:
    """RMSNorms, {theirs: ours}."""
    return [row(f"{theirs}.weight", f"{ours}/scale", transform) for theirs, ours in names.items()]


def model_rules(
    model: ModelConfig, layers: Sequence[list[Rule]], norm: Transform = VECTOR
) -> list[Rule]:
    """A whole model: embeddings, `layers` bottom up, the final norm, and the head if untied."""
    rules = [row("model.embed_tokens.weight", "embedding")]
    for index, layer in enumerate(layers):
        rules += within(f"model.layers.{index}", f"layers/{index}", layer)
    rules.append(row("model.norm.weight", "final_norm/scale", norm))
    if not model.tie_embeddings:
        rules.append(row("lm_head.weight", "head", Linear()))
    return rules


def heads(hub: HubConfig) -> Json:
    """Sizes of attention: num_heads, num_kv_heads and head_dim, as our mixer names them."""
    num_heads, d_model = hub.take("num_attention_heads"), hub.take("hidden_size")
    return {
        "num_heads": num_heads,
        "num_kv_heads": hub.take("num_key_value_heads", num_heads),
        "head_dim": hub.take("head_dim", d_model // num_heads),
    }


def model_section(hub: HubConfig, *, tied: bool, **parts: Any) -> Json:
    """Our `model:` section of sizes that all families name alike, with `parts` of its own."""
    return {
        "d_model": hub.take("hidden_size"),
        "num_layers": hub.take("num_hidden_layers"),
        "vocab_size": hub.take("vocab_size"),
        "tie_embeddings": hub.take("tie_word_embeddings", tied),
        "init": {"std": float(hub.take("initializer_range", 0.02)), "output": "plain"},
        **parts,
    }


def sizes(model: ModelConfig) -> Json:
    """The keys of config.json for sizes that all families name alike.

    Raises:
        UserError: layers that are not all attention with an FFN, or differ in sizes.
    """
    layer = first_layer(model)
    mixer = attention_of(layer)
    if layer.ffn is None:
        raise UserError("layers without an FFN, where this family has one")
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": layer.ffn.d_hidden,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.kv_heads,
        "head_dim": mixer.head_size(model.d_model),
        "rms_norm_eps": model.norm.eps,
        "tie_word_embeddings": model.tie_embeddings,
    }


def first_layer(model: ModelConfig) -> Layer:
    return model.pattern_layers()[0]


def attention_of(layer: Layer) -> AttentionConfig:
    """Raises UserError where the layer's mixer is another one."""
    if not isinstance(layer.mixer, AttentionConfig):
        raise UserError(f"a mixer '{layer.mixer.kind}', where this family has attention")
    return layer.mixer


def usual_scale(head_dim: int) -> float:
    """Of attention logits, where nothing else is said."""
    return 1 / math.sqrt(head_dim)
