"""BERT (Devlin et al., 2018, arXiv:1810.04805), with the head that predicts hidden tokens, or
without one; the pooler, and what predicts the next sentence, are left out."""

from collections.abc import Collection

from jaxformer.checkpoint.interop.decoder import first_layer, layer_norm_rules, linear_rules
from jaxformer.checkpoint.interop.encoder import (
    encoder_layers,
    encoder_rules,
    encoder_sizes,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Rule, row, within
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import TypedTokensConfig
from jaxformer.model.outputs import TransformedConfig
from jaxformer.model.positions import LearnedPositionsConfig

HEADLESS = ["BertModel"]  # of `architectures`
HEAD = "cls.predictions"

DEFAULTS: Json = {
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def as_stored(config: Json, tensors: Collection[str]) -> Json:
    """Whether there is a head is told by the tensors alone: files of either kind name the other."""
    has_head = any(name.startswith(HEAD) for name in tensors)
    return {**config, "architectures": ["BertForMaskedLM"] if has_head else HEADLESS}


def to_config(hub: HubConfig) -> Json:
    for key in ("is_decoder", "add_cross_attention"):
        hub.need(key, False)
    hub.need("tie_word_embeddings", True)
    hub.need("position_embedding_type", "absolute")
    layers = encoder_layers(hub, "post")
    outputs: Json = {"kind": "transformed", "activation": layers["ffn"]["kind"]}
    return {
        **layers,
        "vocab_size": hub.count("vocab_size"),
        "positions": {"kind": "learned", "max_length": hub.count("max_position_embeddings")},
        "inputs": {"kind": "typed_tokens", "types": hub.count("type_vocab_size")},
        "outputs": {"kind": "linear"} if hub.take("architectures", []) == HEADLESS else outputs,
    }


def from_config(model: ModelConfig) -> Json:
    positions, inputs = first_layer(model).positions, model.inputs
    if not isinstance(positions, LearnedPositionsConfig):
        raise UserError("no learned positions, where this family has some")
    if not isinstance(inputs, TypedTokensConfig):
        raise UserError(f"inputs {inputs.kind}, where this family has typed_tokens")
    has_head = isinstance(model.outputs, TransformedConfig)
    return {
        **encoder_sizes(model),
        "architectures": ["BertForMaskedLM"] if has_head else HEADLESS,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": positions.max_length,
        "type_vocab_size": inputs.types,
        "tie_word_embeddings": model.tie_embeddings,
    }


LAYER = [
    *encoder_rules("attention.self"),
    *layer_norm_rules("attention.output.LayerNorm", "mixer_norm"),
    *layer_norm_rules("output.LayerNorm", "ffn_norm"),
]


def rules(model: ModelConfig) -> list[Rule]:
    embeddings = "bert.embeddings"
    table = [
        row(f"{embeddings}.word_embeddings.weight", "embedding"),
        row(f"{embeddings}.position_embeddings.weight", "position_embedding"),
        row(f"{embeddings}.token_type_embeddings.weight", "type_embedding"),
        *layer_norm_rules(f"{embeddings}.LayerNorm", "embedding_norm"),
    ]
    for index in range(model.num_layers):
        table += within(f"bert.encoder.layer.{index}", f"layers/{index}", LAYER)
    if isinstance(model.outputs, TransformedConfig):
        table += linear_rules(f"{HEAD}.transform.dense", "transform", bias=True)
        table += layer_norm_rules(f"{HEAD}.transform.LayerNorm", "transform_norm")
        table.append(row(f"{HEAD}.bias", "head_bias"))
    return table


BERT = Family(
    "bert",
    "BertForMaskedLM",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    prefix="bert.",
    unused=r"(bert\.)?(pooler\.dense\.\w+|embeddings\.position_ids)|cls\.seq_relationship\.\w+",
    aliases=(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
    copies=(
        (r"cls\.predictions\.decoder\.weight", "bert.embeddings.word_embeddings.weight"),
        (r"cls\.predictions\.decoder\.bias", "cls.predictions.bias"),
    ),
    objective={"kind": "masked_tokens"},
    as_stored=as_stored,
)
