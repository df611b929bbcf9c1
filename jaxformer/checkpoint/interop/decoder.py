"""What Llama and its descendants share: names of tensors and of options."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from jaxformer.checkpoint.interop.hub_config import HubConfig, shown
from jaxformer.checkpoint.interop.rules import Linear, Rule, Transform, Vector, row, within
from jaxformer.errors import UserError
from jaxformer.model.channel_mixers.dense import DenseConfig
from jaxformer.model.config import ModelConfig
from jaxformer.model.layer import Layer
from jaxformer.model.mixers import MixerConfig
from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.model.mixers.options import has_bias
from jaxformer.model.trunk_config import TrunkConfig

Json = dict[str, Any]
M = TypeVar("M", bound=MixerConfig)

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
GATED_FFN = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}
VECTOR = Vector()
MOST_LAYERS = 10_000
UNUSED_WINDOW = 4096
PRE_NORMS = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "ffn_norm"}


# Tensors ----------------------------------------------------------------------------------------


def linear_rules(theirs: str, ours: str, bias: bool = False, inputs: int = 1) -> list[Rule]:
    """A linear map of our first `inputs` dimensions, perhaps with a bias."""
    rules = [row(f"{theirs}.weight", f"{ours}/kernel", Linear(inputs))]
    return [*rules, row(f"{theirs}.bias", f"{ours}/bias", VECTOR)] if bias else rules


def attention_rules(mixer: AttentionConfig, norm: Transform = VECTOR) -> list[Rule]:
    """A matrix each for queries, keys, values and the output, and norms where there are some. An
    output gate is in the matrix of the queries, head by head."""
    rules: list[Rule] = []
    for ours in ("query", "key", "value"):
        if ours == "query" and mixer.output_gate:
            parts = ("query/kernel", "gate/kernel")
            rules.append(Rule("q_proj.weight", parts, Linear(), groups=mixer.num_heads))
        else:
            rules += linear_rules(ATTENTION[ours], ours, has_bias(mixer.qkv_bias, ours))
    rules += linear_rules(ATTENTION["output"], "output", mixer.output_bias, inputs=2)
    rules += [row("sinks", "sink_logit")] if mixer.sink_logit else []
    norms = {"q_norm": "query_norm", "k_norm": "key_norm"} if mixer.qk_norm else {}
    return rules + norm_rules(norms, norm)


def gated_ffn_rules(layer: Layer) -> list[Rule]:
    bias, pairs = ffn_of(layer).bias, GATED_FFN.items()
    return [rule for ours, theirs in pairs for rule in linear_rules(theirs, ours, bias)]


def norm_rules(names: dict[str, str], transform: Transform = VECTOR) -> list[Rule]:
    """RMSNorms, {theirs: ours}."""
    return [row(f"{theirs}.weight", f"{ours}/scale", transform) for theirs, ours in names.items()]


def layer_norm_rules(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    """A LayerNorm, perhaps without a bias."""
    scale = row(f"{theirs}.weight", f"{ours}/scale")
    return [scale, row(f"{theirs}.bias", f"{ours}/bias")] if bias else [scale]


def layer_rules(
    layer: Layer, norms: dict[str, str] = PRE_NORMS, norm: Transform = VECTOR
) -> list[Rule]:
    """Attention and a gated FFN."""
    return [
        *norm_rules(norms, norm),
        *within("self_attn", "mixer", attention_rules(attention_of(layer), norm)),
        *within("mlp", "ffn", gated_ffn_rules(layer)),
    ]


def model_rules(
    model: ModelConfig,
    layers: Sequence[list[Rule]],
    norm: Transform = VECTOR,
    final_norm: str = "norm",
) -> list[Rule]:
    """A whole model: embeddings, `layers` bottom up, the final norm, and the head if untied."""
    rules = [row("model.embed_tokens.weight", "embedding")]
    for index, layer in enumerate(layers):
        rules += within(f"model.layers.{index}", f"layers/{index}", layer)
    rules.append(row(f"model.{final_norm}.weight", "final_norm/scale", norm))
    return rules + head_rules(model)


def head_rules(model: ModelConfig) -> list[Rule]:
    return [] if model.tie_embeddings else [row("lm_head.weight", "head", Linear())]


# From config.json -------------------------------------------------------------------------------


def heads(hub: HubConfig) -> Json:
    """Sizes of attention, as our mixer names them.

    Raises:
        UserError: a key is missing or wrong, or the key-value heads do not divide the heads.
    """
    num_heads, d_model = hub.count("num_attention_heads"), hub.count("hidden_size")
    num_kv_heads = hub.count("num_key_value_heads", num_heads)
    hub.need_divisible("num_attention_heads", num_heads, "num_key_value_heads", num_kv_heads)
    return {
        "kind": "attention",
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": hub.count("head_dim", d_model // num_heads),
    }


def gated_ffn(hub: HubConfig, kind: str) -> Json:
    """A gated FFN. Only Llama may have biases in it: the other families ignore `mlp_bias`."""
    bias = hub.flag("mlp_bias") if "mlp_bias" in hub.defaults else hub.need("mlp_bias", False)
    return {"kind": kind, "d_hidden": hub.count("intermediate_size"), "bias": bias}


def layers_of(hub: HubConfig, key: str = "num_hidden_layers") -> int:
    """The number of layers, limited because lists of them are made.

    Raises:
        UserError: it is missing or wrong.
    """
    number: int = hub.count(key, most=MOST_LAYERS)
    return number


def layer_types(
    hub: HubConfig, default: Sequence[str], allowed: Sequence[str], key: str = "layer_types"
) -> list[str]:
    """The kind of every layer; `default`, repeated bottom up, stands in for `key` if the file has
    none.

    Raises:
        UserError: it is no list of one allowed kind for each layer.
    """
    num_layers = layers_of(hub)
    types = hub.listed(key, [default[layer % len(default)] for layer in range(num_layers)])
    if len(types) != num_layers:
        raise UserError(f"{hub.name} has {len(types)} {key}, not one for each layer")
    for kind in types:
        if kind not in allowed:
            raise UserError(
                f"{hub.name} has {key} with {shown(kind)}; allowed: {', '.join(allowed)}"
            )
    return types


def windows(hub: HubConfig, window: int | None, default: Sequence[str]) -> list[int | None]:
    """The window of every layer; `default`, repeated bottom up, stands in for `layer_types` if the
    file has none."""
    switch = " with use_sliding_window true" if "use_sliding_window" in hub.defaults else ""
    types = layer_types(hub, default, ("full_attention", "sliding_attention"))
    if window is None and "sliding_attention" in types:
        raise UserError(
            f"{hub.name} has layer_types with sliding_attention, but no sliding_window{switch}"
        )
    return [window if kind == "sliding_attention" else None for kind in types]


def model_section(
    hub: HubConfig,
    *,
    mixers: Sequence[Json],
    ffns: Sequence[Json] | None = None,
    layer_positions: Sequence[Json] | None = None,
    **parts: Any,
) -> Json:
    """Our `model:` section, with a mixer, and an FFN and positions if they differ, for every layer,
    and a family's own `parts`.

    Families whose classes have no `initializer_range` get that of most others.
    """
    return {
        "d_model": hub.count("hidden_size"),
        "num_layers": layers_of(hub),
        "vocab_size": hub.count("vocab_size"),
        "tie_embeddings": hub.flag("tie_word_embeddings"),
        "init": {"std": hub.number("initializer_range", 0.02), "output": "plain"},
        **layers_section(mixers, ffns, layer_positions),
        **parts,
    }


def need_parts(hub: HubConfig, parts: Sequence[Json], *kinds: str) -> None:
    """Raises UserError unless some layer has a part of each of our `kinds`: without one, the model
    is another family's, and could not be exported as this one."""
    for kind in kinds:
        if all(part["kind"] != kind for part in parts):
            raise UserError(
                f"{hub.name} has no layer with {kind}, as its number of layers and their kinds "
                f"come out; a model of this family has {', '.join(kinds)}"
            )


def layers_section(
    mixers: Sequence[Json],
    ffns: Sequence[Json] | None = None,
    positions: Sequence[Json] | None = None,
) -> Json:
    """The shortest pattern that repeats to `mixers`, one for every layer, and `ffns` and
    `positions`, likewise."""
    layers = [{"mixer": mixer} for mixer in mixers]
    for key, parts in (("ffn", ffns), ("positions", positions)):
        if parts is not None:
            layers = [{**layers[at % len(layers)], key: part} for at, part in enumerate(parts)]
    period = next(
        period
        for period in range(1, len(layers) + 1)
        if all(layer == layers[index % period] for index, layer in enumerate(layers))
    )
    return layers[0] if period == 1 else {**layers[0], "pattern": layers[:period]}


def rms_norm(hub: HubConfig, placement: str) -> Json:
    return {"kind": "rms", "placement": placement, "eps": hub.number("rms_norm_eps")}


# To config.json ---------------------------------------------------------------------------------


def sizes(
    model: ModelConfig, d_hidden: int | None = None, mixer: AttentionConfig | None = None
) -> Json:
    """The keys that all these families share; `d_hidden` and the attention are those of the first
    layer unless given.

    Raises:
        UserError: it is not attention with an FFN.
    """
    layer = first_layer(model)
    mixer = mixer or attention_of(layer)
    return {
        **sizes_of_any(model, d_hidden or ffn_of(layer).d_hidden),
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.kv_heads,
        "head_dim": mixer.head_size(model.d_model),
    }


def sizes_of_any(model: ModelConfig, d_hidden: int) -> Json:
    """The keys that families share whatever their mixers are."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": d_hidden,
        "num_hidden_layers": model.num_layers,
        "initializer_range": model.init.std,
        "rms_norm_eps": model.norm.eps,
        "tie_word_embeddings": model.tie_embeddings,
    }


def window_options(model: ModelConfig) -> Json:
    """The keys for layers of which some may have a window; if none has, a number stands in that
    transformers wants all the same."""
    found = [attention_of(layer).window for layer in model.layers()]
    window = next((window for window in found if window is not None), UNUSED_WINDOW)
    return {"sliding_window": window, "layer_types": [layer_type(each) for each in found]}


def layer_type(window: int | None) -> str:
    """What `layer_types` calls a layer with such a window."""
    return "full_attention" if window is None else "sliding_attention"


def first_layer(model: TrunkConfig) -> Layer:
    return model.pattern_layers()[0]


def attention_of(layer: Layer) -> AttentionConfig:
    """The layer's attention; raises UserError if its mixer is another one."""
    return mixer_of(layer, AttentionConfig)


def mixer_of(layer: Layer, kind: type[M]) -> M:
    """The layer's mixer.

    Raises:
        UserError: it is another one, or there is none.
    """
    if not isinstance(layer.mixer, kind):
        found = "no mixer" if layer.mixer is None else f"a mixer '{layer.mixer.kind}'"
        raise UserError(f"{found}, where this family has {kind.model_fields['kind'].default}")
    return layer.mixer


def first_mixer(model: ModelConfig, kind: type[M]) -> M:
    """The mixer of the lowest layer that has one of this kind.

    Raises:
        UserError: no layer has one.
    """
    for layer in model.layers():
        if isinstance(layer.mixer, kind):
            return layer.mixer
    name = kind.model_fields["kind"].default
    raise UserError(f"no layer with a mixer '{name}', where this family has some")


def ffn_of(layer: Layer) -> DenseConfig:
    """The layer's FFN.

    Raises:
        UserError: there is none.
    """
    if not isinstance(layer.ffn, DenseConfig):
        raise UserError("layers without an FFN, where this family has one")
    return layer.ffn


def usual_scale(head_dim: int) -> float:
    """The scale of attention logits, if none is given."""
    return 1 / math.sqrt(head_dim)


def embedding_scale(model: TrunkConfig) -> float:
    """What embeddings are multiplied by."""
    scale = model.scale_embeddings
    return math.sqrt(model.d_model) if scale is True else scale or 1.0


def root(value: float, power: float) -> float:
    """x with x ** power = value: the nearest whole number, if rounding is all that it differs by.

    Files have whole numbers where we have a power of them.
    """
    found = value ** (1 / power)
    nearest = max(round(found), 1)
    return nearest if nearest**power == found**power else found
