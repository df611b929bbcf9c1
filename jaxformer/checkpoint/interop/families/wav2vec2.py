"""wav2vec 2.0 (Baevski et al., 2020, arXiv:2006.11477) and HuBERT (Hsu et al., 2021,
arXiv:2106.07447), with a head for CTC: convolutions over the waveform, positions by a convolution
with weight norm, and layers with norms after the sums in base models, and before in large ones.

What learns from hidden places is left out: their embedding, and wav2vec 2.0's quantiser.
"""

from functools import partial

from jaxformer.checkpoint.interop.convolution import ConvolutionKernel
from jaxformer.checkpoint.interop.decoder import layer_norm_rules, linear_rules
from jaxformer.checkpoint.interop.encoder import encoder_layers, encoder_sizes
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import WIDEST, HubConfig, shown
from jaxformer.checkpoint.interop.rules import Linear, Rule, row, within
from jaxformer.checkpoint.interop.weight_norm import WeightNorm
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import RawConfig
from jaxformer.model.inputs.raw import LAYER_NORM, STRIDES, WIDTHS
from jaxformer.model.positions import ConvolutionPositionsConfig

DEFAULTS: Json = {
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "conv_dim": [512] * 7,
    "conv_stride": list(STRIDES),
    "conv_kernel": list(WIDTHS),
    "conv_bias": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "do_stable_layer_norm": False,
}
DEFAULTS_OF_WAV2VEC2: Json = {**DEFAULTS, "add_adapter": False, "adapter_attn_dim": None}
DEFAULTS_OF_HUBERT: Json = {
    **DEFAULTS,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
}
# What a model must have where the key is there at all.
NEEDED: Json = {
    "feat_extract_activation": "gelu",
    "conv_stride": list(STRIDES),
    "conv_kernel": list(WIDTHS),
    "num_feat_extract_layers": len(WIDTHS),
    "layer_norm_eps": LAYER_NORM.eps,
    "add_adapter": False,
    "adapter_attn_dim": None,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
}
# Of training, of quantisers, of adapters that are not there, and of heads for classes.
UNREAD = (
    *("activation_dropout", "feat_proj_dropout", "feat_quantizer_dropout", "final_dropout"),
    *("feat_extract_dropout", "layerdrop", "freeze_feat_extract_train", "apply_spec_augment"),
    *("mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_time_min_space"),
    *("mask_time_other", "mask_time_selection", "no_mask_time_overlap"),
    *("mask_channel_prob", "mask_channel_length", "mask_channel_min_space", "mask_channel_other"),
    *("mask_channel_selection", "no_mask_channel_overlap"),
    *("mask_feature_prob", "mask_feature_length", "mask_feature_min_masks"),
    *("num_codevectors_per_group", "num_codevector_groups", "contrastive_logits_temperature"),
    *("num_negatives", "codevector_dim", "proj_codevector_dim", "diversity_loss_weight"),
    *("ctc_loss_reduction", "ctc_zero_infinity", "use_weighted_layer_sum", "classifier_proj_size"),
    *("tdnn_dim", "tdnn_kernel", "tdnn_dilation", "xvector_output_dim", "output_hidden_size"),
    *("adapter_kernel_size", "adapter_stride", "num_adapter_layers"),
)


def to_config(hub: HubConfig) -> Json:
    for key, value in NEEDED.items():
        hub.need(key, value)
    for key in UNREAD:
        hub.take(key, None)
    norm, bias = hub.need("feat_extract_norm", "group", "layer"), hub.flag("conv_bias")
    if bias != (norm == "layer"):
        raise UserError(
            f"{hub.name} has conv_bias {bias} with feat_extract_norm '{norm}'; allowed: true with "
            f"layer, false with group"
        )
    is_stable = hub.flag("do_stable_layer_norm")
    return {
        **encoder_layers(hub, "pre" if is_stable else "post"),
        "vocab_size": hub.count("vocab_size"),
        "tie_embeddings": False,
        "positions": {
            "kind": "convolution",
            "width": hub.count("num_conv_pos_embeddings"),
            "groups": hub.count("num_conv_pos_embedding_groups"),
        },
        "inputs": {
            "kind": "raw",
            "channels": _channels(hub),
            "norm": norm,
            "embedding_norm": not is_stable,
        },
        "outputs": {"kind": "linear", "bias": True},
    }


def _channels(hub: HubConfig) -> int:
    """The width of the convolutions.

    Raises:
        UserError: they are more or fewer than seven, or their widths differ.
    """
    widths = hub.listed("conv_dim")
    channels = widths[0]
    if type(channels) is not int or not 0 < channels <= WIDEST or widths != [channels] * 7:
        raise UserError(
            f"{hub.name} has conv_dim {shown(widths)}; allowed: seven times the same number"
        )
    return channels


def from_config(model: ModelConfig) -> Json:
    inputs, positions = model.inputs, model.positions
    if not isinstance(inputs, RawConfig):
        raise UserError(f"inputs {inputs.kind}, where this family has raw")
    if not isinstance(positions, ConvolutionPositionsConfig):
        raise UserError(f"positions {positions.kind}, where this family has convolution")
    return {
        **encoder_sizes(model),
        "vocab_size": model.vocab_size,
        "feat_extract_norm": inputs.norm,
        "conv_dim": [inputs.channels] * len(WIDTHS),
        "conv_bias": inputs.norm == "layer",
        "num_conv_pos_embeddings": positions.width,
        "num_conv_pos_embedding_groups": positions.groups,
        "do_stable_layer_norm": model.norm.placement == "pre",
        # Without an embedding of hidden places, transformers can hide none.
        "mask_time_prob": 0.0,
        "mask_feature_prob": 0.0,
    }


LAYER = [
    *linear_rules("attention.q_proj", "mixer/query", bias=True),
    *linear_rules("attention.k_proj", "mixer/key", bias=True),
    *linear_rules("attention.v_proj", "mixer/value", bias=True),
    *linear_rules("attention.out_proj", "mixer/output", bias=True, inputs=2),
    *layer_norm_rules("layer_norm", "mixer_norm"),
    *linear_rules("feed_forward.intermediate_dense", "ffn/in", bias=True),
    *linear_rules("feed_forward.output_dense", "ffn/out", bias=True),
    *layer_norm_rules("final_layer_norm", "ffn_norm"),
]


def rules(name: str, model: ModelConfig) -> list[Rule]:
    """`name` is the family's, which all names but the head's begin with."""
    inputs = model.inputs
    assert isinstance(inputs, RawConfig)
    encoder = f"{name}.encoder"
    table = _convolution_rules(f"{name}.feature_extractor.conv_layers", inputs)
    table += layer_norm_rules(f"{name}.feature_projection.layer_norm", "projection_norm")
    table += linear_rules(f"{name}.feature_projection.projection", "projection", bias=True)
    table += _position_rules(f"{encoder}.pos_conv_embed.conv")
    norm = "embedding_norm" if inputs.embedding_norm else "final_norm"
    table += layer_norm_rules(f"{encoder}.layer_norm", norm)
    for index in range(model.num_layers):
        table += within(f"{encoder}.layers.{index}", f"layers/{index}", LAYER)
    return [*table, row("lm_head.weight", "head", Linear()), row("lm_head.bias", "head_bias")]


def _convolution_rules(theirs: str, inputs: RawConfig) -> list[Rule]:
    table: list[Rule] = []
    for index in range(len(WIDTHS)):
        layer, ours = f"{theirs}.{index}", f"convolutions_{index}"
        table.append(row(f"{layer}.conv.weight", f"{ours}/kernel", ConvolutionKernel()))
        if inputs.norm == "layer":
            table.append(row(f"{layer}.conv.bias", f"{ours}/bias"))
            table += layer_norm_rules(f"{layer}.layer_norm", f"norms_{index}")
    if inputs.norm == "group":
        table += layer_norm_rules(f"{theirs}.0.layer_norm", "norm")
    return table


def _position_rules(theirs: str) -> list[Rule]:
    weight, ours = f"{theirs}.parametrizations.weight", "position_convolution"
    lengths = (f"{weight}.original0",)
    kernel = (f"{ours}/kernel",)
    return [
        WeightNorm(f"{weight}.original1", kernel, ConvolutionKernel(), beside=lengths),
        row(f"{theirs}.bias", f"{ours}/bias"),
    ]


def _family(name: str, architecture: str, defaults: Json) -> Family:
    return Family(
        name,
        architecture,
        to_config,
        from_config,
        partial(rules, name),
        defaults,
        prefix=f"{name}.",
        unused=rf"({name}\.)?masked_spec_embed|quantizer\..*|project_(hid|q)\..*",
        aliases=(
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ),
        fresh=("lm_head.weight", "lm_head.bias"),
        reads="audio",
        objective={"kind": "ctc"},
    )


WAV2VEC2 = _family("wav2vec2", "Wav2Vec2ForCTC", DEFAULTS_OF_WAV2VEC2)
HUBERT = _family("hubert", "HubertForCTC", DEFAULTS_OF_HUBERT)
