"""Hyper-connections: several residual streams with learned weights (Zhu et al., 2024,
arXiv:2409.19606)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from jaxformer.model.norms import rms_normalize
from jaxformer.model.placements import Number
from jaxformer.model.residuals.streams import Connection, Streams, StreamsConfig


class HyperConnectionsConfig(StreamsConfig):
    """Several residual streams, which sub-layers read, mix and write with learned weights
    (arXiv:2409.19606). At the start they are all the plain residual's stream."""

    kind: Literal["hyper_connections"] = "hyper_connections"
    dynamic: bool = Field(
        True, description="adds to the weights what each token's streams say; false has static ones"
    )

    @property
    def weights_per_stream(self) -> int:
        return self.streams + 2 if self.dynamic else 0


class HyperConnections(Streams):
    """h = A_mᵀ X, X ← A_rᵀ X + Bᵀ f(N(h)) for n streams X [n, d_model]."""

    config: HyperConnectionsConfig

    def connect(self, streams: jax.Array, sublayer: str) -> Connection:
        config = self.config
        module = HyperConnection(config.streams, config.dynamic, name=f"{sublayer}_connection")
        connection: Connection = module(streams, self.turn(sublayer))
        return connection


class HyperConnection(nn.Module):
    """Static weights A_m [n], A_r [n, n] and B [n], to which dynamic ones are added:

    A_m + s_α tanh(X̄ w_m),  A_r + s_α tanh(X̄ W_r),  B + s_β tanh(X̄ w_β)

    with X̄ the streams, each normalised. They start at A_m = e_k for
    sub-layer k modulo n, A_r = 1, B = 1, w = 0 and s = 0.01.
    """

    streams: int
    dynamic: bool

    @nn.compact
    def __call__(self, x: jax.Array, turn: Number) -> Connection:
        n, d_model = x.shape[-2:]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        named, zeros = nn.with_logical_partitioning, nn.initializers.zeros

        def first(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return jax.nn.one_hot(turn, n, dtype=dtype)

        def identity(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return jnp.eye(n, dtype=dtype)

        read = self.param("read", named(first, ("stream",)), (n,), jnp.float32)
        mix = self.param("mix", named(identity, ("stream", "into_stream")), (n, n), jnp.float32)
        write = self.param("write", named(nn.initializers.ones, ("stream",)), (n,), jnp.float32)
        read, mix, write = (weight.astype(wide) for weight in (read, mix, write))
        if self.dynamic:
            small = named(nn.initializers.constant(0.01), ("branch",))
            of_alpha, of_beta = self.param("scales", small, (2,), jnp.float32).astype(wide)
            matrix = named(zeros, ("d_model", "choices"))
            kernel = self.param("dynamic", matrix, (d_model, n + 2), jnp.float32).astype(wide)
            found = jnp.tanh(rms_normalize(x, 1e-6).astype(wide) @ kernel)  # [..., n, n + 2]
            read = read + of_alpha * found[..., 0]
            write = write + of_beta * found[..., 1]
            mix = mix + of_alpha * found[..., 2:]
        return Connection(read, jnp.swapaxes(mix, -1, -2), write)
