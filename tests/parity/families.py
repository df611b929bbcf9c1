"""Small models that cannot be imported, twice, in transformers and here, and how weights go from
one to the other."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import transformers
from parity.weights import Weights

VOCAB = 37
D_MODEL = 64


class Family(NamedTuple):
    """`params`: their tensors as our tree, whose leaves may lack our split into heads."""

    theirs: transformers.PreTrainedConfig
    ours: dict
    params: Callable[[Weights, dict], dict]


def model(num_layers: int, **options) -> dict:
    """Our `model:` section, its layers listed one by one, so that they are one group."""
    pattern = options.pop("pattern", [{}] * num_layers)
    shape = {"d_model": D_MODEL, "num_layers": num_layers, "vocab_size": VOCAB}
    return shape | {"tie_embeddings": False, "pattern": pattern} | options


def tree(embedding: np.ndarray, norm: np.ndarray, layers: list[dict], head: np.ndarray | None):
    """The parameters of a whole model."""
    group = {f"layer_{index}": layer for index, layer in enumerate(layers)}
    params = {
        "embedding": embedding,
        "final_norm": {"scale": norm},
        "stack": {"group_0": group},
    }
    return params if head is None else params | {"head": head}


def kernels(weights: Weights, names: dict[str, str]) -> dict:
    """{our name: {"kernel": matrix}} for linear maps without biases."""
    return {ours: {"kernel": weights.matrix(theirs)} for ours, theirs in names.items()}


def gated_ffn(weights: Weights, prefix: str) -> dict:
    """SwiGLU as Llama names it."""
    names = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}
    return kernels(weights, {ours: f"{prefix}.{theirs}" for ours, theirs in names.items()})


# Mamba ------------------------------------------------------------------------------------------


def mamba_layers(weights: Weights, ours: dict, mixer: Callable[[Weights, str], dict]) -> dict:
    """A model of mixers alone, with tied embeddings."""
    layers = [
        {
            "mixer_norm": {"scale": weights(f"backbone.layers.{index}.norm.weight")},
            "mixer": mixer(weights, f"backbone.layers.{index}.mixer"),
        }
        for index in range(ours["num_layers"])
    ]
    embedding = weights("backbone.embeddings.weight")
    return tree(embedding, weights("backbone.norm_f.weight"), layers, None)


def mamba_mixer(weights: Weights, at: str) -> dict:
    into, gate = np.split(weights.matrix(f"{at}.in_proj"), 2, axis=1)
    return {
        "input": {"kernel": into},
        "gate": {"kernel": gate},
        "conv": weights.convolution(f"{at}.conv1d"),
        "select": {"kernel": weights.matrix(f"{at}.x_proj")},
        "dt": {"kernel": weights.matrix(f"{at}.dt_proj")},
        "dt_bias": weights(f"{at}.dt_proj.bias"),
        "a_log": weights(f"{at}.A_log"),
        "skip": weights(f"{at}.D"),
        "output": {"kernel": weights.matrix(f"{at}.out_proj")},
    }


MAMBA = Family(
    transformers.MambaConfig(
        vocab_size=VOCAB, hidden_size=D_MODEL, num_hidden_layers=2, state_size=8
    ),
    model(
        2,
        mixer={"kind": "mamba", "state_size": 8},
        ffn=None,
        norm={"eps": 1e-5},
        positions={"kind": "none"},
        tie_embeddings=True,
    ),
    lambda weights, ours: mamba_layers(weights, ours, mamba_mixer),
)

# Mamba-2 ----------------------------------------------------------------------------------------

GROUPS, STATES, INNER, HEADS = 2, 24, 2 * D_MODEL, 8


def mamba2_mixer(weights: Weights, at: str) -> dict:
    ends = np.cumsum([INNER, INNER, GROUPS * STATES, GROUPS * STATES])
    parts = np.split(weights.matrix(f"{at}.in_proj"), ends, axis=1)
    names = ("z", "x", "b", "c", "dt")
    return {name: {"kernel": part} for name, part in zip(names, parts, strict=True)} | {
        "conv": weights.convolution(f"{at}.conv1d"),
        "dt_bias": weights(f"{at}.dt_bias"),
        "a_log": weights(f"{at}.A_log"),
        "skip": weights(f"{at}.D"),
        "scale": weights(f"{at}.norm.weight"),
        "output": {"kernel": weights.matrix(f"{at}.out_proj")},
    }


MAMBA2 = Family(
    transformers.Mamba2Config(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        num_hidden_layers=2,
        num_heads=HEADS,
        head_dim=INNER // HEADS,
        n_groups=GROUPS,
        state_size=STATES,
        chunk_size=16,
        tie_word_embeddings=True,
    ),
    model(
        2,
        mixer={
            "kind": "mamba2",
            "head_dim": INNER // HEADS,
            "num_groups": GROUPS,
            "state_size": STATES,
        },
        ffn=None,
        norm={"eps": 1e-5},
        positions={"kind": "none"},
        tie_embeddings=True,
    ),
    lambda weights, ours: mamba_layers(weights, ours, mamba2_mixer),
)

# RecurrentGemma ---------------------------------------------------------------------------------


def recurrent_gemma(weights: Weights, ours: dict) -> dict:
    def recurrence(at: str) -> dict:
        return {
            "input": weights.linear(f"{at}.linear_x"),
            "gate": weights.linear(f"{at}.linear_y"),
            "output": weights.linear(f"{at}.linear_out"),
            "conv": weights.convolution(f"{at}.conv_1d"),
            "decay": weights(f"{at}.rg_lru.recurrent_param"),
        } | {
            ours: {
                "kernel": weights(f"{at}.rg_lru.{theirs}_weight"),
                "bias": weights(f"{at}.rg_lru.{theirs}_bias"),
            }
            for ours, theirs in {
                "input_gate": "input_gate",
                "recurrence_gate": "recurrent_gate",
            }.items()
        }

    def attention(at: str) -> dict:
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
        inputs = kernels(weights, {a: f"{at}.{b}" for a, b in names.items()})
        return inputs | {"output": weights.linear(f"{at}.o_proj")}

    def layer(index: int) -> dict:
        at = f"model.layers.{index}"
        mixer = attention if index % 3 == 2 else recurrence
        names = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}
        return {
            "mixer_norm": {"scale": 1 + weights(f"{at}.temporal_pre_norm.weight")},
            "mixer": mixer(f"{at}.temporal_block"),
            "ffn_norm": {"scale": 1 + weights(f"{at}.channel_pre_norm.weight")},
            "ffn": {a: weights.linear(f"{at}.mlp_block.{b}") for a, b in names.items()},
        }

    return tree(
        weights("model.embed_tokens.weight"),
        1 + weights("model.final_norm.weight"),
        [layer(index) for index in range(ours["num_layers"])],
        None,
    )


WINDOW = {"kind": "attention", "num_heads": 4, "num_kv_heads": 1, "window": 9, "output_bias": True}

RECURRENT_GEMMA = Family(
    transformers.RecurrentGemmaConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=2 * 96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        attention_window_size=9,
    ),
    model(
        4,
        mixer={"kind": "rglru", "num_heads": 4},
        pattern=[{}, {}, {"mixer": WINDOW}, {}],
        ffn={"kind": "geglu", "d_hidden": 96, "bias": True},
        positions={"kind": "rope", "fraction": 0.5},
        tie_embeddings=True,
        scale_embeddings=True,
        logit_softcap=30.0,
    ),
    recurrent_gemma,
)

# Qwen3-Next -------------------------------------------------------------------------------------

KEY, VALUE = 12, 20


def qwen3_next(weights: Weights, ours: dict) -> dict:
    def gated_delta(at: str) -> dict:
        into = weights.matrix(f"{at}.in_proj_qkvz").reshape(D_MODEL, 4, -1)  # a head at a time
        q, k, v, z = np.split(into, np.cumsum([KEY, KEY, VALUE]), axis=2)
        beta, decay = weights.matrix(f"{at}.in_proj_ba").reshape(D_MODEL, 4, 2).transpose(2, 0, 1)
        return {
            "query": {"kernel": q},
            "key": {"kernel": k},
            "value": {"kernel": v},
            "beta": {"kernel": beta},
            "decay": {"kernel": decay},
            "conv": weights.convolution(f"{at}.conv1d"),
            "dt_bias": weights(f"{at}.dt_bias"),
            "a_log": weights(f"{at}.A_log"),
            "out": {
                "gate": {"kernel": z},
                "scale": weights(f"{at}.norm.weight"),
                "output": {"kernel": weights.matrix(f"{at}.out_proj")},
            },
        }

    def attention(at: str) -> dict:
        query, gate = np.split(weights.matrix(f"{at}.q_proj").reshape(D_MODEL, 4, -1), 2, axis=2)
        names = {"key": "k_proj", "value": "v_proj", "output": "o_proj"}
        return kernels(weights, {a: f"{at}.{b}" for a, b in names.items()}) | {
            "query": {"kernel": query},
            "gate": {"kernel": gate},
            "query_norm": {"scale": 1 + weights(f"{at}.q_norm.weight")},
            "key_norm": {"scale": 1 + weights(f"{at}.k_norm.weight")},
        }

    def layer(index: int) -> dict:
        at = f"model.layers.{index}"
        is_attention = index % 4 == 3
        return {
            "mixer_norm": {"scale": 1 + weights(f"{at}.input_layernorm.weight")},
            "mixer": (
                attention(f"{at}.self_attn") if is_attention else gated_delta(f"{at}.linear_attn")
            ),
            "ffn_norm": {"scale": 1 + weights(f"{at}.post_attention_layernorm.weight")},
            "ffn": gated_ffn(weights, f"{at}.mlp"),
        }

    return tree(
        weights("model.embed_tokens.weight"),
        1 + weights("model.norm.weight"),
        [layer(index) for index in range(ours["num_layers"])],
        weights.matrix("lm_head"),
    )


QWEN3_NEXT = Family(
    transformers.Qwen3NextConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        linear_key_head_dim=KEY,
        linear_value_head_dim=VALUE,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        mlp_only_layers=[0, 1, 2, 3],
        num_experts=0,
    ),
    model(
        4,
        mixer={
            "kind": "gated_delta",
            "num_heads": 4,
            "head_dim": KEY,
            "value_expansion": VALUE / KEY,
        },
        pattern=[
            {},
            {},
            {},
            {
                "mixer": {
                    "kind": "attention",
                    "num_heads": 4,
                    "num_kv_heads": 2,
                    "head_dim": 16,
                    "qk_norm": True,
                    "output_gate": True,
                }
            },
        ],
        ffn={"kind": "swiglu", "d_hidden": 96},
        positions={"kind": "rope", "fraction": 0.25},
    ),
    qwen3_next,
)

# xLSTM ------------------------------------------------------------------------------------------


def xlstm(weights: Weights, ours: dict) -> dict:
    def layer(index: int) -> dict:
        at = f"backbone.blocks.{index}"
        names = {"query": "q", "key": "k", "value": "v", "gate": "ogate_preact"}
        names |= {"input_gate": "igate_preact", "forget_gate": "fgate_preact", "output": "out_proj"}
        cell = f"{at}.mlstm_layer"
        mixer = kernels(weights, {a: f"{cell}.{b}" for a, b in names.items()})
        mixer |= {
            "input_gate_bias": weights(f"{cell}.igate_preact.bias"),
            "forget_gate_bias": weights(f"{cell}.fgate_preact.bias"),
            "scale": weights(f"{cell}.multihead_norm.weight"),
        }
        ffn = {"gate": "proj_up_gate", "in": "proj_up", "out": "proj_down"}
        return {
            "mixer_norm": {"scale": weights(f"{at}.norm_mlstm.weight")},
            "mixer": mixer,
            "ffn_norm": {"scale": weights(f"{at}.norm_ffn.weight")},
            "ffn": kernels(weights, {a: f"{at}.ffn.{b}" for a, b in ffn.items()}),
        }

    return tree(
        weights("backbone.embeddings.weight"),
        weights("backbone.out_norm.weight"),
        [layer(index) for index in range(ours["num_layers"])],
        weights.matrix("lm_head"),
    )


XLSTM = Family(
    transformers.xLSTMConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        num_hidden_layers=2,
        num_heads=4,
        chunk_size=16,
        autocast_kernel_dtype="float32",
        ffn_proj_factor=2.0,
    ),
    model(
        2,
        mixer={"kind": "mlstm", "num_heads": 4, "gate_softcap": 15.0},
        ffn={"kind": "swiglu", "d_hidden": 128},
        positions={"kind": "none"},
        logit_softcap=30.0,
    ),
    xlstm,
)

FAMILIES = {
    "mamba": MAMBA,
    "mamba2": MAMBA2,
    "recurrent_gemma": RECURRENT_GEMMA,
    "qwen3_next": QWEN3_NEXT,
    "xlstm": XLSTM,
}
