"""GPT-2 (Radford et al., 2019): learned positions, LayerNorms and biases, matrices as
[inputs, outputs], and queries, keys and values as one."""

from jaxformer.checkpoint.interop.decoder import (
    attention_of,
    ffn_of,
    first_layer,
    head_rules,
    layer_norm_rules,
    layers_of,
)
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rules import Matrix, Rule, Vector, row, within
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.positions import LearnedPositionsConfig

QKV = ("query", "key", "value")
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")


def _linear(theirs: str, ours: str, inputs: int = 1) -> list[Rule]:
    return [
        row(f"{theirs}.weight", f"{ours}/kernel", Matrix(inputs)),
        row(f"{theirs}.bias", f"{ours}/bias", Vector()),
    ]


LAYER = [
    *layer_norm_rules("ln_1", "mixer_norm"),
    Rule("attn.c_attn.weight", tuple(f"mixer/{each}/kernel" for each in QKV), Matrix(), axis=1),
    Rule("attn.c_attn.bias", tuple(f"mixer/{each}/bias" for each in QKV), Vector()),
    *_linear("attn.c_proj", "mixer/output", inputs=2),
    *layer_norm_rules("ln_2", "ffn_norm"),
    *_linear("mlp.c_fc", "ffn/in"),
    *_linear("mlp.c_proj", "ffn/out"),
]


DEFAULTS: Json = {
    "n_positions": 1024,
    "n_inner": None,  # four times n_embd
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def to_config(hub: HubConfig) -> Json:
    hub.need("activation_function", *TANH_GELU)
    hub.need("scale_attn_weights", True)
    for key in (
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
        "add_cross_attention",
    ):
        hub.need(key, False)
    d_model, num_heads = hub.count("n_embd"), hub.count("n_head")
    hub.need_divisible("n_embd", d_model, "n_head", num_heads)
    return {
        "d_model": d_model,
        "num_layers": layers_of(hub, "n_layer"),
        "vocab_size": hub.count("vocab_size"),
        "tie_embeddings": hub.flag("tie_word_embeddings"),
        "init": {"std": hub.number("initializer_range"), "output": "scaled"},
        "mixer": {
            "kind": "attention",
            "num_heads": num_heads,
            "qkv_bias": True,
            "output_bias": True,
        },
        "ffn": {"kind": "gelu", "d_hidden": hub.count("n_inner", 4 * d_model), "bias": True},
        "norm": {
            "kind": "layer",
            "placement": "pre",
            "eps": hub.number("layer_norm_epsilon"),
            "bias": True,
        },
        "positions": {"kind": "learned", "max_length": hub.count("n_positions")},
    }


def from_config(model: ModelConfig) -> Json:
    layer = first_layer(model)
    if not isinstance(layer.positions, LearnedPositionsConfig):
        raise UserError("no learned positions, where this family has some")
    return {
        "vocab_size": model.vocab_size,
        "n_positions": layer.positions.max_length,
        "n_embd": model.d_model,
        "n_layer": model.num_layers,
        "n_head": attention_of(layer).num_heads,
        "n_inner": ffn_of(layer).d_hidden,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.norm.eps,
        "initializer_range": model.init.std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def rules(model: ModelConfig) -> list[Rule]:
    table = [
        row("transformer.wte.weight", "embedding"),
        row("transformer.wpe.weight", "position_embedding"),
    ]
    for index in range(model.num_layers):
        table += within(f"transformer.h.{index}", f"layers/{index}", LAYER)
    return table + layer_norm_rules("transformer.ln_f", "final_norm") + head_rules(model)


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    to_config,
    from_config,
    rules,
    DEFAULTS,
    prefix="transformer.",
    unused=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask
)
