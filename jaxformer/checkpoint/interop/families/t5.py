"""T5 (Raffel et al., 2020, arXiv:1910.10683), which reads a text and writes another."""

from jaxformer.checkpoint.interop.decoder import (
    MOST_LAYERS,
    attention_of,
    ffn_of,
    first_layer,
    head_rules,
    layers_of,
    linear_rules,
    norm_rules,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Linear, Rule, row, within
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.positions import RelativePositionsConfig

# `feed_forward_proj`, as our FFN, and with its parts.
FFNS = {
    "relu": ("relu", {"wi": "ffn/in", "wo": "ffn/out"}),
    "gated-gelu": ("geglu", {"wi_0": "ffn/gate", "wi_1": "ffn/in", "wo": "ffn/out"}),
}
ATTENTION = {"q": "query", "k": "key", "v": "value"}
CROSS = "layer.1.EncDecAttention"

DEFAULTS: Json = {
    "num_layers": 6,
    "num_heads": 8,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "vocab_size": 32128,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "n_positions": 512,
}


def to_config(hub: HubConfig) -> Json:
    hub.need("is_encoder_decoder", True)
    kind, _ = FFNS[hub.need("feed_forward_proj", *FFNS)]
    hub.need("is_gated_act", kind == "geglu")
    hub.need("dense_act_fn", *(("gelu_new",) if kind == "geglu" else ("relu",)))
    for key in ("dropout_rate", "output_past"):
        hub.take(key, None)  # of training alone, and of the memory of decoding
    d_model, num_layers = hub.count("d_model"), layers_of(hub, "num_layers")
    heads = {"num_heads": hub.count("num_heads"), "head_dim": hub.count("d_kv"), "scale": 1.0}
    stack = {
        "d_model": d_model,
        "mixer": {"kind": "attention", **heads},
        "ffn": {"kind": kind, "d_hidden": hub.count("d_ff")},
        "norm": {"eps": hub.number("layer_norm_epsilon")},
        "positions": {
            "kind": "relative",
            "num_buckets": hub.count("relative_attention_num_buckets"),
            "max_distance": hub.count("relative_attention_max_distance"),
        },
    }
    is_tied = hub.flag("tie_word_embeddings")
    return {
        **stack,
        "num_layers": 2 * hub.count("num_decoder_layers", num_layers, most=MOST_LAYERS),
        "pattern": [{"ffn": "none"}, {"mixer": {"kind": "cross_attention", **heads}}],
        "vocab_size": hub.count("vocab_size"),
        "tie_embeddings": is_tied,
        "logit_scale": d_model**-0.5 if hub.flag("scale_decoder_outputs", is_tied) else 1.0,
        "encoder": {
            **stack,
            "num_layers": num_layers,
            "length": hub.count("n_positions"),
            "inputs": {"kind": "shared_tokens"},
        },
    }


def from_config(model: ModelConfig) -> Json:
    layer, encoder = first_layer(model), model.encoder
    mixer, ffn, positions = attention_of(layer), ffn_of(model.layers()[-1]), layer.positions
    if encoder is None:
        raise UserError("no encoder, where this family has one")
    if not isinstance(positions, RelativePositionsConfig):
        raise UserError(f"positions {positions.kind}, where this family has relative ones")
    named = (theirs for theirs, (ours, _) in FFNS.items() if ours == ffn.kind)
    return {
        "d_model": model.d_model,
        "d_kv": mixer.head_size(model.d_model),
        "d_ff": ffn.d_hidden,
        "num_layers": encoder.num_layers,
        "num_decoder_layers": model.num_layers // 2,
        "num_heads": mixer.num_heads,
        "relative_attention_num_buckets": positions.num_buckets,
        "relative_attention_max_distance": positions.max_distance,
        "layer_norm_epsilon": model.norm.eps,
        "feed_forward_proj": next(named, "relu"),
        "tie_word_embeddings": model.tie_embeddings,
        "scale_decoder_outputs": model.logit_scale != 1.0,
        "vocab_size": model.vocab_size,
        "n_positions": encoder.length,
        "is_encoder_decoder": True,
    }


def rules(model: ModelConfig) -> list[Rule]:
    assert model.encoder is not None
    table = [row("shared.weight", "embedding")]
    attention = [
        *_attention("layer.0.SelfAttention"),
        *norm_rules({"layer.0.layer_norm": "mixer_norm"}),
    ]
    for index in range(model.encoder.num_layers):
        layer = [*attention, *_ffn(model, "layer.1")]
        table += within(f"encoder.block.{index}", f"encoder/layers/{index}", layer)
    cross = [*_attention(CROSS), *norm_rules({"layer.1.layer_norm": "mixer_norm"})]
    for index in range(model.num_layers // 2):
        block = f"decoder.block.{index}"
        table += within(block, f"layers/{2 * index}", attention)
        table += within(block, f"layers/{2 * index + 1}", [*cross, *_ffn(model, "layer.2")])
    for theirs, ours in (("encoder", "encoder/"), ("decoder", "")):
        bias = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table.append(row(bias, f"{ours}relative_bias", Linear()))
        table += norm_rules({f"{theirs}.final_layer_norm": f"{ours}final_norm"})
    return table + head_rules(model)


def _attention(theirs: str) -> list[Rule]:
    parts = ATTENTION.items()
    found = [rule for t, o in parts for rule in linear_rules(f"{theirs}.{t}", f"mixer/{o}")]
    return found + linear_rules(f"{theirs}.o", "mixer/output", inputs=2)


def _ffn(model: ModelConfig, theirs: str) -> list[Rule]:
    kind = ffn_of(model.layers()[-1]).kind
    parts = next(parts for ours, parts in FFNS.values() if ours == kind)
    found = [
        rule for t, o in parts.items() for rule in linear_rules(f"{theirs}.DenseReluDense.{t}", o)
    ]
    return [*found, *norm_rules({f"{theirs}.layer_norm": "ffn_norm"})]


T5 = Family(
    "t5",
    "T5ForConditionalGeneration",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    prefix="",
    # A table that older files have for cross-attention, which has no positions.
    unused=rf"decoder\.block\.0\.{CROSS.replace('.', '[.]')}\.relative_attention_bias\.weight",
    copies=((r"(encoder|decoder)\.embed_tokens\.weight", "shared.weight"),),
    reads="pairs",
)
