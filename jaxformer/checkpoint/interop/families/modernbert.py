"""ModernBERT (Warner et al., 2024, arXiv:2412.13663), with the head that predicts hidden tokens, or
without one: rotary positions, a window in two of three layers, gated FFNs, and no biases but that
of the head."""

from collections.abc import Collection, Sequence

from jaxformer.checkpoint.interop.decoder import (
    VECTOR,
    attention_of,
    ffn_of,
    layer_norm_rules,
    layer_types,
    layers_of,
    layers_section,
    linear_rules,
    window_options,
)
from jaxformer.checkpoint.interop.encoder import ACTIVATIONS
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import LARGEST, HubConfig
from jaxformer.checkpoint.interop.rope_of_layers import from_ropes, to_ropes
from jaxformer.checkpoint.interop.rules import Linear, Rule, row, within
from jaxformer.model.config import ModelConfig
from jaxformer.model.layer import Layer
from jaxformer.model.outputs import TransformedConfig

HEADLESS = ["ModernBertModel"]  # of `architectures`
HEAD = ("head.", "decoder.")
GATED = {"gelu": "exact_geglu", "gelu_pytorch_tanh": "geglu", "silu": "swiglu"}
QKV = ("query", "key", "value")

DEFAULTS: Json = {
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "layer_types": None,  # a window in all but the first of every three layers
    "rope_parameters": None,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "local_attention": 128,
    "decoder_bias": True,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "tie_word_embeddings": True,
}
# Of training, of how it is computed, of heads for classes, and of BERT.
UNREAD = (
    *("mlp_dropout", "deterministic_flash_attn", "reference_compile", "repad_logits_with_grad"),
    *("sparse_prediction", "sparse_pred_ignore_index", "classifier_pooling", "cls_token_id"),
    *("layer_norm_eps", "position_embedding_type"),
)


def as_stored(config: Json, tensors: Collection[str]) -> Json:
    """Whether there is a head is told by the tensors alone, as with BERT."""
    has_head = any(name.startswith(HEAD) for name in tensors)
    return {**config, "architectures": ["ModernBertForMaskedLM"] if has_head else HEADLESS}


def to_config(hub: HubConfig) -> Json:
    for key in UNREAD:
        hub.take(key, None)
    hub.need("tie_word_embeddings", True)
    hub.need("rope_scaling", None)
    d_model, num_heads = hub.count("hidden_size"), hub.count("num_attention_heads")
    hub.need_divisible("hidden_size", d_model, "num_attention_heads", num_heads)
    windows = _windows(hub)
    thetas = {
        "full_attention": hub.number("global_rope_theta"),
        "sliding_attention": hub.number("local_rope_theta"),
    }
    bias = hub.flag("attention_bias")
    mixer = {
        "kind": "attention",
        "num_heads": num_heads,
        "qkv_bias": bias,
        "output_bias": bias,
    }
    return {
        "d_model": d_model,
        "num_layers": layers_of(hub),
        "vocab_size": hub.count("vocab_size"),
        "order": "full",
        "init": {"std": hub.number("initializer_range"), "output": "scaled"},
        **_layers(
            [{**mixer, "window": window} for window in windows],
            to_ropes(hub, d_model // num_heads, windows, thetas),
        ),
        "ffn": {
            "kind": GATED[hub.need("hidden_activation", *GATED)],
            "d_hidden": hub.count("intermediate_size"),
            "bias": hub.flag("mlp_bias"),
        },
        "norm": {
            "kind": "layer",
            "eps": hub.number("norm_eps"),
            "bias": hub.flag("norm_bias"),
        },
        "inputs": {"kind": "tokens", "embedding_norm": True},
        "outputs": _outputs(hub),
    }


def _windows(hub: HubConfig) -> list[int | None]:
    """The window of every layer, which here counts a token's own place."""
    window = hub.count("local_attention", most=LARGEST) // 2 + 1
    period = hub.count("global_attn_every_n_layers", 3)
    default = [
        "sliding_attention" if layer % period else "full_attention"
        for layer in range(layers_of(hub))
    ]
    types = layer_types(hub, default, ("full_attention", "sliding_attention"))
    return [window if kind == "sliding_attention" else None for kind in types]


def _layers(mixers: Sequence[Json], positions: Sequence[Json]) -> Json:
    """The lowest layer, whose mixer reads the embeddings as their norm gives them, and the shortest
    pattern of the others."""
    lowest = {"mixer": mixers[0], "positions": positions[0], "mixer_norm": False}
    if len(mixers) == 1:
        return {**layers_section(mixers, positions=positions), "pattern": [lowest]}
    return {**layers_section(mixers[1:], positions=positions[1:]), "first": [lowest]}


def _outputs(hub: HubConfig) -> Json:
    head = {
        "kind": "transformed",
        "activation": ACTIVATIONS[hub.need("classifier_activation", *ACTIVATIONS)],
        "transform_bias": hub.flag("classifier_bias"),
        "bias": hub.flag("decoder_bias"),
    }
    return {"kind": "linear"} if hub.take("architectures", []) == HEADLESS else head


def from_config(model: ModelConfig) -> Json:
    layer = model.layers()[0]
    mixer, ffn, window = attention_of(layer), ffn_of(layer), window_options(model)
    written = {
        "hidden_size": model.d_model,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": mixer.num_heads,
        "intermediate_size": ffn.d_hidden,
        "vocab_size": model.vocab_size,
        "hidden_activation": _theirs(GATED, ffn.kind),
        "initializer_range": model.init.std,
        "norm_eps": model.norm.eps,
        "norm_bias": model.norm.bias,
        "attention_bias": mixer.qkv_bias,
        "mlp_bias": ffn.bias,
        "layer_types": window["layer_types"],
        "local_attention": 2 * (window["sliding_window"] - 1),
        "tie_word_embeddings": model.tie_embeddings,
        **from_ropes(model),
    }
    if not isinstance(model.outputs, TransformedConfig):
        return {**written, "architectures": HEADLESS}
    return {
        **written,
        "architectures": ["ModernBertForMaskedLM"],
        "classifier_activation": _theirs(ACTIVATIONS, model.outputs.activation),
        "classifier_bias": model.outputs.transform_bias,
        "decoder_bias": model.outputs.bias,
    }


def _theirs(names: dict[str, str], ours: str) -> str:
    return next((theirs for theirs, each in names.items() if each == ours), "gelu")


def rules(model: ModelConfig) -> list[Rule]:
    bias, outputs = model.norm.bias, model.outputs
    table = [row("model.embeddings.tok_embeddings.weight", "embedding")]
    table += layer_norm_rules("model.embeddings.norm", "embedding_norm", bias)
    for index, layer in enumerate(model.layers()):
        table += within(f"model.layers.{index}", f"layers/{index}", _layer(layer, bias))
    table += layer_norm_rules("model.final_norm", "final_norm", bias)
    if isinstance(outputs, TransformedConfig):
        table += linear_rules("head.dense", "transform", outputs.transform_bias)
        table += layer_norm_rules("head.norm", "transform_norm", bias)
        table += [row("decoder.bias", "head_bias")] if outputs.bias else []
    return table


def _layer(layer: Layer, norm_bias: bool) -> list[Rule]:
    mixer, ffn = attention_of(layer), ffn_of(layer)
    table = layer_norm_rules("attn_norm", "mixer_norm", norm_bias) if layer.mixer_norm else []
    table += _joined("attn.Wqkv", tuple(f"mixer/{each}" for each in QKV), bool(mixer.qkv_bias))
    table += linear_rules("attn.Wo", "mixer/output", mixer.output_bias, inputs=2)
    table += layer_norm_rules("mlp_norm", "ffn_norm", norm_bias)
    table += _joined("mlp.Wi", ("ffn/gate", "ffn/in"), ffn.bias)
    return table + linear_rules("mlp.Wo", "ffn/out", ffn.bias)


def _joined(theirs: str, ours: tuple[str, ...], bias: bool) -> list[Rule]:
    """One matrix for several of ours, perhaps with a bias."""
    kernels, biases = (tuple(f"{each}/{kind}" for each in ours) for kind in ("kernel", "bias"))
    matrix = Rule(f"{theirs}.weight", kernels, Linear())
    return [matrix, Rule(f"{theirs}.bias", biases, VECTOR)] if bias else [matrix]


MODERNBERT = Family(
    "modernbert",
    "ModernBertForMaskedLM",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    copies=((r"decoder\.weight", "model.embeddings.tok_embeddings.weight"),),
    objective={"kind": "masked_tokens"},
    as_stored=as_stored,
)
