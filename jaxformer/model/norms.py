"""RMSNorm, LayerNorm and dynamic tanh.

RMSNorm: Zhang and Sennrich, 2019, arXiv:1910.07467. LayerNorm: Ba et al., 2016, arXiv:1607.06450.
Dynamic tanh: Zhu et al., 2025, arXiv:2503.10622.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat, model_validator

from jaxformer.schema.base import Schema


class NormConfig(Schema):
    """Which norm N, and where it stands around a sub-layer f of layer l = 1, 2, …

    - none: x + f(x).
    - pre: x + f(N(x)).
    - post: N(x + f(x)).
    - sandwich: x + N(f(N(x))). With inputs.embedding_norm it is peri-LN (arXiv:2502.02732).
    - after: x + N(f(x)) (OLMo 2, arXiv:2501.00656).
    - sub: pre, and a norm before the last matrix of f (Sub-LN, arXiv:2210.06423).
    - deepnorm: N(α x + f(x)) (arXiv:2203.00555).
    - lns: x + f(N(x) / √l) (arXiv:2502.05795).
    - mixed: post in the lowest layers, pre in the others (Mix-LN, arXiv:2412.13795).

    With sub, deepnorm and lns, matrices start as published, unless init.output is plain.
    """

    kind: Literal["rms", "layer", "dyt"] = Field(
        "rms", description="RMSNorm, LayerNorm, or dynamic tanh γ tanh(α x) + β"
    )
    placement: Literal[
        "none", "pre", "post", "sandwich", "after", "sub", "deepnorm", "lns", "mixed"
    ] = Field("pre", description="where the norm stands around a sub-layer")
    eps: PositiveFloat = Field(
        1e-6, description="added to the mean square, or to the variance; of no use to dyt"
    )
    bias: bool = Field(False, description="gives norms a bias, which is β of dyt")
    alpha: PositiveFloat = Field(0.5, description="what α of dyt starts at")
    mixer_alpha: PositiveFloat | None = Field(
        None,
        description="what α of dyt starts at around token mixers; alpha if null. Llama at width "
        "4,096 had alpha 0.2 and mixer_alpha 0.8, at width 8,192 0.05 and 0.2",
    )
    post_share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.25, description="the share of the layers that are post where the placement is mixed"
    )

    @model_validator(mode="after")
    def _options_are_used(self) -> "NormConfig":
        for key, owner, value in (
            ("alpha", "kind: dyt", self.kind),
            ("mixer_alpha", "kind: dyt", self.kind),
            ("post_share", "placement: mixed", self.placement),
        ):
            is_given = getattr(self, key) != type(self).model_fields[key].default
            if is_given and value != owner.rpartition(" ")[2]:
                raise ValueError(
                    f"{key} is {getattr(self, key):g}, which is of no use with {value}; give "
                    f"{owner}, or leave it out"
                )
        return self

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm follows the last layer, whose output none has passed."""
        return self.placement not in ("post", "deepnorm")

    def around(self, sublayer: str) -> "NormConfig":
        """That of the sub-layer `mixer` or `ffn`."""
        if sublayer != "mixer" or self.mixer_alpha is None:
            return self
        return self.model_copy(update={"alpha": self.mixer_alpha})


def rms_normalize(x: jax.Array, eps: float) -> jax.Array:
    """x / √(mean(x²) + ε) over the last axis, in float32 or wider, returned in x's type."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Not jnp.square: with its gradient XLA on a CPU writes broadcasts of the scale to memory.
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype)


def layer_normalize(x: jax.Array, eps: float) -> jax.Array:
    """(x − mean(x)) / √(var(x) + ε) over the last axis, in float32 or wider, in x's type."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return rms_normalize(wide - jnp.mean(wide, axis=-1, keepdims=True), eps).astype(x.dtype)


def unit_normalize(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """x / √(Σ x² + ε) over the last axis, in float32 or wider, returned in x's type."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype)


def dynamic_tanh(x: jax.Array, alpha: jax.Array) -> jax.Array:
    """tanh(α x), in float32 or wider, returned in x's type."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.tanh(alpha.astype(wide) * x.astype(wide)).astype(x.dtype)


class Norm(nn.Module):
    """normalize(x) ⊙ scale (+ bias) over the last axis; the scale starts at one.

    `axis_name` is the logical axis of the normalised dimension.
    """

    config: NormConfig
    axis_name: str = "vector"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        names, shape = (self.axis_name,), (x.shape[-1],)
        normal = NORMS[self.config.kind](self, x)
        scale = self.param(
            "scale", nn.with_logical_partitioning(nn.initializers.ones, names), shape, jnp.float32
        )
        y = normal * scale.astype(x.dtype)
        if self.config.bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, names),
                shape,
                jnp.float32,
            )
            y = y + bias.astype(x.dtype)
        return y

    def alpha(self) -> jax.Array:
        """α of dynamic tanh, []."""
        start = nn.initializers.constant(self.config.alpha)
        return self.param("alpha", nn.with_logical_partitioning(start, ()), (), jnp.float32)


def _rms(norm: Norm, x: jax.Array) -> jax.Array:
    """γ ⊙ x / √(mean(x²) + ε) (arXiv:1910.07467)."""
    return rms_normalize(x, norm.config.eps)


def _layer(norm: Norm, x: jax.Array) -> jax.Array:
    """γ ⊙ (x − mean(x)) / √(var(x) + ε) (arXiv:1607.06450)."""
    return layer_normalize(x, norm.config.eps)


def _dyt(norm: Norm, x: jax.Array) -> jax.Array:
    """γ ⊙ tanh(α x), with a learned number α (arXiv:2503.10622)."""
    return dynamic_tanh(x, norm.alpha())


# What a norm does before its bias, by its kind; the scale γ is the caller's.
NORMS: dict[str, Callable[[Norm, jax.Array], jax.Array]] = {
    "rms": _rms,
    "layer": _layer,
    "dyt": _dyt,
}
