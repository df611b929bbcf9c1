"""Options that several mixers have, each with its description."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

NumHeads = Annotated[PositiveInt, Field(description="the number of heads")]
QKVBias = Annotated[
    bool | Literal["no_key"],
    Field(
        description="adds biases to queries, keys and values, or to queries and values alone "
        "(`no_key`, as in Whisper)"
    ),
]
NumKVHeads = Annotated[
    PositiveInt | None,
    Field(
        description="heads of keys and values; `num_heads` if null, and 1 is multi-query attention"
    ),
]
HeadDim = Annotated[
    PositiveInt | None, Field(description="features per head; d_model / num_heads if null")
]
OutputBias = Annotated[bool, Field(description="adds a bias to the output projection")]
LogitFactor = Annotated[
    PositiveFloat | None, Field(description="multiplies the logits; 1/√head_dim if null")
]
KeyDim = Annotated[PositiveInt, Field(description="features of a query and a key, per head")]
ValueExpansion = Annotated[
    PositiveFloat, Field(description="features of a value, as a multiple of `head_dim`")
]
KeyShare = Annotated[
    PositiveFloat, Field(description="features of all keys, as a multiple of d_model")
]
ValueShare = Annotated[
    PositiveFloat, Field(description="features of all values, as a multiple of d_model")
]
NegativeEigenvalues = Annotated[
    bool, Field(description="lets β range over [0, 2] instead of [0, 1] (arXiv:2411.12537)")
]
OutputGate = Annotated[
    bool,
    Field(description="multiplies every output feature by the silu of a projection of the input"),
]
ConvWidth = Annotated[
    PositiveInt,
    Field(description="how many tokens the short convolution sees, including the current one"),
]


def check_heads(d_model: int, num_heads: int, kv_heads: int, head_dim: int | None) -> None:
    """Check that heads of attention share a width, and queries the keys and values.

    Raises:
        ValueError: `num_heads` does not divide d_model, or is not divisible by `kv_heads`.
    """
    if head_dim is None and d_model % num_heads:
        raise ValueError(
            f"d_model {d_model} is not divisible by num_heads {num_heads}; change one, or give "
            f"head_dim"
        )
    if num_heads % kv_heads:
        raise ValueError(
            f"num_heads {num_heads} is not divisible by num_kv_heads {kv_heads}; allowed: a "
            f"divisor of num_heads"
        )


def has_bias(qkv_bias: bool | Literal["no_key"], part: str) -> bool:
    """Whether `query`, `key` or `value` has one."""
    return qkv_bias is True or (qkv_bias == "no_key" and part != "key")
