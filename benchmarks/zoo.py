"""Every mixer as the benchmarks run it: width 256, four heads where it has a choice of heads."""

from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel, build_model
from jaxformer.model.mixers import MIXERS
from jaxformer.schema.tree import all_kinds

D_MODEL, D_HIDDEN, VOCAB = 256, 688, 256
ENCODERS = ("bidirectional", "scanned")  # of models that are not causal
KINDS = [kind for kind in all_kinds(list(MIXERS)) if kind not in ENCODERS]

HEADS = {"num_heads": 4}


def mixer(kind: str, d_model: int = D_MODEL) -> dict:
    """The `mixer:` section of a configuration: a memory [d_model / 4, d_model / 4] per head where
    sizes can be chosen, so that weights and states are near attention's; else the defaults."""
    size = d_model // 4
    options: dict = {
        "attention": HEADS,
        "tensor_product_attention": HEADS,
        "differential_attention": {"num_heads": 2},  # with two queries and keys each
        "forgetting_attention": HEADS,
        "stick_breaking_attention": HEADS,
        "retention": HEADS | {"value_expansion": 1.0},
        "gla": HEADS,
        "delta": HEADS | {"head_dim": size},
        "gated_delta": HEADS | {"head_dim": size, "value_expansion": 1.0},
        "comba": HEADS | {"head_dim": size, "value_expansion": 1.0},
        "kda": HEADS | {"head_dim": size},
        "gated_delta2": HEADS | {"head_dim": size},
        "delta_product": HEADS | {"head_dim": size, "value_expansion": 1.0},
        "mamba2": {"expansion": 1.0, "head_dim": size, "state_size": size},
        "mamba3": {"expansion": 1.0, "head_dim": size, "state_size": size},
        "parallel": {
            "mixers": [
                {"kind": "attention", "window": 256} | HEADS,
                {"kind": "mamba2", "expansion": 1.0, "head_dim": size, "state_size": size},
            ]
        },
    }
    return {"kind": kind} | options.get(kind, {})


def one_layer(kind: str) -> LanguageModel:
    """A model of one such mixer with a SwiGLU FFN."""
    config = {
        "d_model": D_MODEL,
        "num_layers": 1,
        "vocab_size": VOCAB,
        "mixer": mixer(kind),
        "ffn": {"kind": "swiglu", "d_hidden": D_HIDDEN},
    }
    return build_model(ModelConfig.model_validate(config))
