"""Whisper (Radford et al., 2022, arXiv:2212.04356), which hears a recording and writes what is
said: an encoder of spectrograms, whose rows are all of one length, and a decoder of texts."""

from jaxformer.checkpoint.interop.convolution import ConvolutionKernel
from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    ffn_of,
    first_layer,
    layer_norm_rules,
    layers_of,
    linear_rules,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Rule, row, within
from jaxformer.checkpoint.interop.sines import Sines
from jaxformer.checkpoint.interop.sound import PLACES_PER_SECOND, SAMPLE_RATE
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import FramesConfig
from jaxformer.model.positions import LearnedPositionsConfig

FRAMES: Json = {
    "kind": "frames",
    "window": 400,
    "hop": 160,
    "subsampling": 2,
    "normalise": "whisper",
    "silence": "heard",
}
DEFAULTS: Json = {
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "activation_function": "gelu",
    "scale_embedding": False,
    "init_std": 0.02,
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
}
# Of training, of generation, and of a head for classes.
UNREAD = (
    *("activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "apply_spec_augment"),
    *("mask_time_prob", "mask_time_length", "mask_time_min_masks"),
    *("mask_feature_prob", "mask_feature_length", "mask_feature_min_masks"),
    *("forced_decoder_ids", "median_filter_width"),
    *("use_weighted_layer_sum", "classifier_proj_size"),
)


def to_config(hub: HubConfig) -> Json:
    for key in ("activation_function", "scale_embedding", "is_encoder_decoder"):
        hub.need(key, DEFAULTS[key])
    hub.need("tie_word_embeddings", True)
    for key in UNREAD:
        hub.take(key, None)
    encoder_layers = layers_of(hub, "encoder_layers")
    hub.need("num_hidden_layers", encoder_layers)  # another name of it
    decoder = _stack(hub, "decoder")
    return {
        **decoder,
        "num_layers": 2 * layers_of(hub, "decoder_layers"),
        "pattern": [{"ffn": "none"}, {"mixer": {**decoder["mixer"], "kind": "cross_attention"}}],
        "positions": {"kind": "learned", "max_length": hub.count("max_target_positions")},
        "vocab_size": hub.count("vocab_size"),
        "encoder": {
            **_stack(hub, "encoder"),
            "num_layers": encoder_layers,
            "length": hub.count("max_source_positions"),
            "positions": {"kind": "sinusoidal", "layout": "halves"},
            "inputs": {**FRAMES, "mels": hub.count("num_mel_bins")},
        },
    }


def _stack(hub: HubConfig, name: str) -> Json:
    """What the encoder and the decoder have in common."""
    d_model, num_heads = hub.count("d_model"), hub.count(f"{name}_attention_heads")
    hub.need_divisible("d_model", d_model, f"{name}_attention_heads", num_heads)
    return {
        "d_model": d_model,
        "mixer": {
            "kind": "attention",
            "num_heads": num_heads,
            "qkv_bias": "no_key",
            "output_bias": True,
        },
        "ffn": {"kind": "exact_gelu", "d_hidden": hub.count(f"{name}_ffn_dim"), "bias": True},
        "norm": {"kind": "layer", "placement": "pre", "eps": 1e-5, "bias": True},
        "init": {"std": hub.number("init_std"), "output": "plain"},
    }


def from_config(model: ModelConfig) -> Json:
    encoder, positions, std = model.encoder, first_layer(model).positions, model.init.std
    if encoder is None or not isinstance(encoder.inputs, FramesConfig):
        raise UserError("no encoder of spectrograms, where this family has one")
    if not isinstance(positions, LearnedPositionsConfig):
        raise UserError(f"positions {positions.kind}, where this family has learned ones")
    if encoder.inputs.sample_rate != SAMPLE_RATE:
        raise UserError(
            f"encoder.inputs.sample_rate is {encoder.inputs.sample_rate}, where this family has "
            f"{SAMPLE_RATE}"
        )
    if encoder.length % PLACES_PER_SECOND:
        raise UserError(
            f"encoder.length is {encoder.length}, where this family has whole seconds; allowed: "
            f"multiples of {PLACES_PER_SECOND}"
        )
    return {
        "d_model": model.d_model,
        "vocab_size": model.vocab_size,
        "num_mel_bins": encoder.inputs.mels,
        "max_source_positions": encoder.length,
        "max_target_positions": positions.max_length,
        "encoder_layers": encoder.num_layers,
        "encoder_attention_heads": attention_of(first_layer(encoder)).num_heads,
        "encoder_ffn_dim": ffn_of(first_layer(encoder)).d_hidden,
        "decoder_layers": model.num_layers // 2,
        "decoder_attention_heads": attention_of(first_layer(model)).num_heads,
        "decoder_ffn_dim": ffn_of(model.layers()[-1]).d_hidden,
        "is_encoder_decoder": True,
        **({"init_std": std} if isinstance(std, float) else {}),
    }


def _attention(theirs: str) -> list[Rule]:
    """Keys have no bias, which would change no weight of attention."""
    projections = [
        rule
        for part, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
        for rule in linear_rules(f"{theirs}.{part}", f"mixer/{ours}", bias=ours != "key")
    ]
    return [
        *projections,
        *linear_rules(f"{theirs}.out_proj", "mixer/output", bias=True, inputs=2),
        *layer_norm_rules(f"{theirs}_layer_norm", "mixer_norm"),
    ]


SELF, CROSS = _attention("self_attn"), _attention("encoder_attn")
FFN = [
    *linear_rules("fc1", "ffn/in", bias=True),
    *linear_rules("fc2", "ffn/out", bias=True),
    *layer_norm_rules("final_layer_norm", "ffn_norm"),
]


def rules(model: ModelConfig) -> list[Rule]:
    encoder = model.encoder
    assert encoder is not None
    size = (encoder.length, encoder.d_model)
    table = [
        Sines("model.encoder.embed_positions.weight", (), size=size),
        row("model.decoder.embed_tokens.weight", "embedding"),
        row("model.decoder.embed_positions.weight", "position_embedding"),
    ]
    for number in (1, 2):
        theirs, ours = f"model.encoder.conv{number}", f"encoder/convolution_{number}"
        table.append(row(f"{theirs}.weight", f"{ours}/kernel", ConvolutionKernel()))
        table.append(row(f"{theirs}.bias", f"{ours}/bias"))
    for index in range(encoder.num_layers):
        theirs, ours = f"model.encoder.layers.{index}", f"encoder/layers/{index}"
        table += within(theirs, ours, [*SELF, *FFN])
    for index in range(model.num_layers // 2):
        theirs = f"model.decoder.layers.{index}"
        table += within(theirs, f"layers/{2 * index}", SELF)
        table += within(theirs, f"layers/{2 * index + 1}", [*CROSS, *FFN])
    for theirs, ours in (("encoder", "encoder/"), ("decoder", "")):
        table += layer_norm_rules(f"model.{theirs}.layer_norm", f"{ours}final_norm")
    return table


WHISPER = Family(
    "whisper",
    "WhisperForConditionalGeneration",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    copies=((r"proj_out\.weight", "model.decoder.embed_tokens.weight"),),
    reads="audio",
)
