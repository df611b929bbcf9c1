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

FAMILIES = {"qwen3_next": QWEN3_NEXT}
