"""Manifold-constrained hyper-connections: streams are mixed by doubly stochastic matrices (mHC: Xie
et al., 2025, arXiv:2512.24880), exactly so as sums of permutations (arXiv:2601.05732)."""

import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field, PositiveInt, model_validator

from jaxformer.model.norms import rms_normalize
from jaxformer.model.placements import Number
from jaxformer.model.residuals.streams import Connection, Streams, StreamsConfig
from jaxformer.ops.doubly_stochastic import mixed_permutations, sinkhorn

LARGEST = 5  # streams whose permutations are listed: 120
OWN_SHARE = 0.9  # of what a sub-layer reads at the start, from the stream whose turn it is
APART = -8.0  # logits of what is not the identity, at the start


class ManifoldConfig(StreamsConfig):
    """Hyper-connections whose streams are mixed by doubly stochastic matrices, so that their mean
    stays (mHC, arXiv:2512.24880)."""

    kind: Literal["mhc"] = "mhc"
    res: Literal["sinkhorn", "permutations", "identity"] = Field(
        "sinkhorn",
        description="the matrix that mixes streams: by Sinkhorn's iteration, an exact sum of all "
        "permutations (arXiv:2601.05732; up to 5 streams), or none",
    )
    iterations: PositiveInt = Field(20, description="of Sinkhorn's iteration")

    @model_validator(mode="after")
    def _permutations_are_few(self) -> "ManifoldConfig":
        if self.res == "permutations" and self.streams > LARGEST:
            raise ValueError(
                f"streams is {self.streams} with res permutations, which has a weight for each of "
                f"{math.factorial(self.streams):,}; allowed: up to {LARGEST}, or res sinkhorn"
            )
        return self

    @property
    def mixing_logits(self) -> tuple[int, ...]:
        """Their shape."""
        n = self.streams
        shapes = {"sinkhorn": (n, n), "permutations": (math.factorial(n),), "identity": ()}
        return shapes[self.res]

    @property
    def weights_per_stream(self) -> int:
        mixing = 0 if self.res == "identity" else math.prod(self.mixing_logits)
        return 2 * self.streams + mixing


class ManifoldConnections(Streams):
    """X ← H_res X + H_postᵀ f(N(H_pre X)) for n streams X [n, d_model]."""

    config: ManifoldConfig

    def connect(self, streams: jax.Array, sublayer: str) -> Connection:
        module = ManifoldConnection(self.config, name=f"{sublayer}_connection")
        connection: Connection = module(streams, self.turn(sublayer))
        return connection


class ManifoldConnection(nn.Module):
    """H_pre = σ(α_pre x̂ φ_pre + b_pre), H_post = 2σ(α_post x̂ φ_post + b_post) and
    H_res = P(α_res x̂ φ_res + b_res) with x̂ = RMSNorm(vec X), where P makes the matrix doubly
    stochastic.

    It starts as the plain residual's stream, n times: φ = 0, α = 0.01, H_post = 1, H_res nearly the
    identity, and H_pre sums to 1, most of it on stream k modulo n for sub-layer k. With equal
    weights, streams would get equal gradients and stay the same.
    """

    config: ManifoldConfig

    @nn.compact
    def __call__(self, x: jax.Array, turn: Number) -> Connection:
        config, (n, d_model) = self.config, x.shape[-2:]
        shape = config.mixing_logits

        def mostly_own(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            share = jnp.where(jnp.arange(n) == turn, OWN_SHARE, (1 - OWN_SHARE) / (n - 1))
            return jnp.log(share / (1 - share)).astype(dtype)

        def apart(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            is_identity = jnp.eye(n) if len(shape) == 2 else jnp.arange(shape[0]) == 0
            return jnp.where(is_identity, 0.0, APART).astype(dtype)

        # Both n and d_model are normalised over.
        normal = rms_normalize(x.reshape(*x.shape[:-2], n * d_model), 1e-6).reshape(x.shape)
        read = jax.nn.sigmoid(self._logits("pre", normal, (n,), ("stream",), mostly_own))
        zeros = nn.initializers.zeros
        write = 2 * jax.nn.sigmoid(self._logits("post", normal, (n,), ("stream",), zeros))
        match config.res:
            case "sinkhorn":
                axes = ("stream", "into_stream")
                mix = sinkhorn(self._logits("res", normal, shape, axes, apart), config.iterations)
            case "permutations":
                logits = self._logits("res", normal, shape, ("branch",), apart)
                mix = mixed_permutations(logits, n)
            case "identity":
                mix = jnp.eye(n, dtype=read.dtype)
        return Connection(read, mix, write)

    def _logits(
        self,
        name: str,
        x: jax.Array,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        start: Callable[..., jax.Array],
    ) -> jax.Array:
        """α x̂ φ + b, [..., *shape], in float32 or wider."""
        named, (n, d_model) = nn.with_logical_partitioning, x.shape[-2:]
        small = named(nn.initializers.constant(0.01), ())
        matrix = named(nn.initializers.zeros, ("stream", "d_model", "choices"))
        size = (n, d_model, math.prod(shape))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        alpha = self.param(f"{name}_scale", small, (), jnp.float32).astype(wide)
        kernel = self.param(f"{name}_kernel", matrix, size, jnp.float32).astype(wide)
        bias = self.param(f"{name}_bias", named(start, axes), shape, jnp.float32).astype(wide)
        found = jnp.einsum("...nd,ndm->...m", x.astype(wide), kernel)
        logits: jax.Array = alpha * found.reshape(*found.shape[:-1], *shape) + bias
        return logits
