"""H-Net's dynamic chunking: layers see chunks of tokens that the model itself finds (Hwang et al.,
2025, arXiv:2507.07955)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from pydantic import Field, NonNegativeFloat, model_validator

from jaxformer.model.block import Block
from jaxformer.model.channel_mixers import ChannelMixerConfig, build_channel_mixer
from jaxformer.model.depth.stack import REMAT_POLICIES, choose_rows
from jaxformer.model.dims import Dims
from jaxformer.model.inputs.base import OfLayers, Share
from jaxformer.model.inputs.tokens import Tokens, TokensConfig
from jaxformer.model.layer import Layer
from jaxformer.model.mixers import Cache, MixerConfig, build_mixer
from jaxformer.model.norms import Norm
from jaxformer.model.positions import OF_THE_MODEL, PositionsUnion, RoPEConfig
from jaxformer.model.projections import Projection
from jaxformer.model.residuals import Residual
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.ops.chunking import Chunking, at_chunks, at_tokens, find_chunks, smoothed


class OuterLayerConfig(Layer):
    """A layer of the encoder or the decoder."""

    mixer: MixerConfig | None = Field(description="the token mixer; null for none")
    ffn: ChannelMixerConfig | None = Field(None, description="the feed-forward network")
    positions: PositionsUnion = Field(
        RoPEConfig(), description="rope, alibi or none, for the tokens' places in their documents"
    )


OuterLayers = Annotated[tuple[OuterLayerConfig, ...], Field(strict=False)]


class ChunksConfig(TokensConfig):
    """Token embeddings and an encoder below the model's layers, which see chunks of tokens, and a
    decoder of tokens above them. Rows cannot be cut over mesh.context."""

    kind: Literal["chunks"] = "chunks"  # type: ignore[assignment]
    can_be_cut = False
    shows_tokens = False

    encoder: OuterLayers = Field(description="layers of all tokens that find the chunks")
    decoder: OuterLayers = Field(description="layers of all tokens above the model's layers")
    ratio: Annotated[float, Field(gt=1.0)] = Field(
        6.0, description="how many tokens a chunk should have on average"
    )
    share: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None,
        description="the most chunks of a row, as a share of its tokens; tokens beyond them belong "
        "to their document's last chunk. Null for 2 / ratio, or 1 if that is less",
    )
    weight: NonNegativeFloat = Field(0.03, description="the weight of the loss that holds `ratio`")
    norms: bool = Field(True, description="ends the encoder and the model's layers with a norm")

    @property
    def most(self) -> float:
        """The most chunks of a row, as a share of its tokens."""
        return min(1.0, 2 / self.ratio) if self.share is None else self.share

    @property
    def own_layers(self) -> tuple[Layer, ...]:
        return (*self.encoder, *self.decoder)

    @model_validator(mode="after")
    def _ratio_fits(self) -> "ChunksConfig":
        if self.most < 1 / self.ratio:
            raise ValueError(
                f"share is {self.share:g}, which leaves no room for 1 / ratio = "
                f"{1 / self.ratio:.3g} chunks per token; give a share of at least that, twice it "
                f"to leave room for rows with more, or null"
            )
        return self

    def check(self, d_model: int, positions: PositionsUnion) -> None:
        for part, layers in (("encoder", self.encoder), ("decoder", self.decoder)):
            for index, layer in enumerate(layers):
                kind, name = layer.positions.kind, f"inputs.{part}.{index}"
                if kind in OF_THE_MODEL:
                    raise ValueError(
                        f"{name}.positions is {kind}, which is {OF_THE_MODEL[kind]}; give "
                        f"model.positions. Allowed here: rope, alibi, none"
                    )
                if kind in ("axial_rope", "alibi") and not layer.uses_positions:
                    raise ValueError(
                        f"{name}.positions is {kind}, which its mixer {layer.mixer_kind} does not "
                        f"use; leave it out"
                    )
                if layer.mixer is not None:
                    layer.mixer.check(d_model, layer.positions)


class Router(nn.Module):
    """p_t = ½ (1 − cos(W_q x_t, W_k x_{t−1})): how likely token t begins a chunk (equation 4).

    Both matrices start as the identity, as in the authors' code.
    """

    dims: Dims

    @nn.compact
    def __call__(self, x: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [batch, length, d_model], the key of the token before them [batch, d_model] → (p
        [batch, length], the key of the last token)."""
        query, key = (_square(_identity, self.dims, name=name)(x) for name in ("query", "key"))
        earlier = jnp.concatenate([before[:, None], key[:, :-1]], axis=1)
        cosine = jnp.sum(_unit(query) * _unit(earlier), axis=-1)
        return (1 - cosine) / 2, key[:, -1]


def _unit(x: jax.Array) -> jax.Array:
    """x / ‖x‖ in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(wide * wide, axis=-1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def _square(init: nn.initializers.Initializer, dims: Dims, **name: str) -> Projection:
    return Projection((dims.d_model,), ("d_model", "d_out"), init, **name)


def _identity(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return jnp.eye(shape[0], dtype=dtype)


class Chunks(Tokens):
    """H-Net with one level of chunks. With x̂ = encoder(embeddings) and the router's p, where p = 1
    at the first token of each document, a chunk begins wherever p_t ≥ ½. The model's layers see x̂
    at the tokens that begin chunks, at their places in the document, counted in chunks, and give ẑ:

        z̄_j = P_j ẑ_j + (1 − P_j) z̄_{j−1}            over the chunks of a document (equation 5)
        y_t = STE(c_t) z̄_{chunk of t} + W x̂_t        c_t = p_t where p_t ≥ ½, 1 − p_t elsewhere

    and the result is decoder(y). STE(c) is 1, with the gradient of c; W starts at zero. The loss is

        weight · N / (N − 1) · ((N − 1) F G + (1 − F)(1 − G))                        (equation 10)

    for each row, times its tokens, with N the `ratio`, F the share of its tokens with p_t ≥ ½, and
    G the mean of p: so it is additive over rows, devices and micro-batches.

    A row of `length` tokens has up to ⌈share · length⌉ chunks. Boundaries beyond them begin none:
    their tokens belong to the document's last chunk, and a document that has none gets W x̂ alone.
    With a cache, `length` is the cache's, so a row decodes as it would pass in one piece. Packed
    documents share the row's chunks: each is as if alone while the row has no boundary beyond them.

    Statistics per token: `inputs/chunks`, `inputs/overflow` (boundaries beyond the most chunks) and
    `inputs/boundary_probability`. Those of the model's layers are per token, not per chunk.
    """

    config: ChunksConfig

    def setup(self) -> None:
        super().setup()
        config, dims = self.config, self.dims
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat])
        self.encoder, self.decoder = (
            [block(layer, self._residual_of(part), self._own_dims) for layer in layers]
            for part, layers in (("encoder", config.encoder), ("decoder", config.decoder))
        )
        self.router = Router(dims)
        self.around = _square(nn.initializers.zeros, dims)
        if config.norms:
            self.encoder_norm, self.chunk_norm = (Norm(self.residual.norm) for _ in range(2))

    def __call__(
        self, tokens: jax.Array, rows: RowInfo, layers: OfLayers, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        batch, length = tokens.shape
        carried = self._start(batch, length) if cache is None else cache["carried"]
        x, encoder_cache, encoder_loss = self._own(
            "encoder", self.embed(tokens, rows), rows, cache and cache["encoder"]
        )
        if self.config.norms:
            x = self.encoder_norm(x)

        real = rows.segment_ids != 0
        previous = jnp.concatenate([carried["segment"][:, None], rows.segment_ids[:, :-1]], axis=1)
        starts = (rows.segment_ids != previous) & real
        p, key = self.router(x, carried["key"])
        p = jnp.where(starts, 1.0, p)  # [batch, length]
        boundaries = (p >= 0.5) & real
        places = self.places(length) if cache is None else length
        chunking = find_chunks(boundaries, starts, carried["room"], carried["position"], places)

        at = RowInfo(
            at_chunks(chunking.position, chunking),
            jnp.where(chunking.used, at_chunks(rows.segment_ids, chunking), 0),
        )
        chunks = at_chunks(x, chunking)  # [batch, places, d_model]
        if cache is None:
            z, stack_cache, aux = layers(chunks, at, None)
        else:
            z, stack_cache = _one_by_one(layers, chunks, at, chunking, cache["stack"])
            aux = LayerAux({})
        if self.config.norms:
            z = self.chunk_norm(z)

        z = smoothed(z.astype(p.dtype), at_chunks(p, chunking), carried["state"])
        y, state = at_tokens(z, carried["state"], chunking)
        confidence = jnp.where(boundaries, p, 1 - p)[..., None]
        y *= 1 + (confidence - jax.lax.stop_gradient(confidence))  # exactly 1 forward
        y = (y + self.around(x.astype(p.dtype))).astype(x.dtype)
        y, decoder_cache, decoder_loss = self._own("decoder", y, rows, cache and cache["decoder"])
        if cache is None:
            loss = self._ratio_loss(p, boundaries, real) + encoder_loss + decoder_loss
            stats = aux.stats | _statistics(p, boundaries, real, chunking)
            return y, None, LayerAux(stats, loss if aux.loss is None else loss + aux.loss)
        carried = {
            "key": key,
            "segment": rows.segment_ids[:, -1],
            "room": carried["room"] - chunking.begun[:, -1],
            "position": chunking.position[:, -1] + 1,
            "state": state,
        }
        longer = {"encoder": encoder_cache, "decoder": decoder_cache}
        return y, longer | {"stack": stack_cache, "carried": carried}, aux

    def _own(
        self,
        part: Literal["encoder", "decoder"],
        x: jax.Array,
        rows: RowInfo,
        caches: tuple[Cache, ...] | None,
    ) -> tuple[jax.Array, tuple[Cache, ...], jax.Array]:
        """x through layers of all tokens → (x, their caches, their losses, summed)."""
        residual, blocks = self._residual_of(part), getattr(self, part)
        stream, longer, loss = residual.start(x), [], jnp.zeros((), jnp.float32)
        for index, block in enumerate(blocks):
            cache = None if caches is None else caches[index]
            stream, cache, aux = block(stream, rows, cache, index)
            longer.append(cache)
            loss = loss if aux.loss is None else loss + aux.loss
        return residual.finish(stream), tuple(longer), loss

    def _ratio_loss(self, p: jax.Array, boundaries: jax.Array, real: jax.Array) -> jax.Array:
        ratio = self.config.ratio
        tokens = jnp.sum(real, axis=1).astype(p.dtype)  # [batch]
        f = jnp.sum(boundaries, axis=1) / jnp.maximum(tokens, 1)
        g = jnp.sum(jnp.where(real, p, 0), axis=1) / jnp.maximum(tokens, 1)
        per_row = ratio / (ratio - 1) * ((ratio - 1) * f * g + (1 - f) * (1 - g))
        return self.config.weight * jnp.sum(tokens * per_row)

    @nn.nowrap
    def init_cache(
        self, batch: int, max_length: int, dtype: DTypeLike, of_layers: Callable[[int], Cache]
    ) -> Cache:
        def of_own(layers: tuple[OuterLayerConfig, ...]) -> tuple[Cache, ...]:
            return tuple(
                None
                if layer.mixer is None
                else build_mixer(
                    layer.mixer, self._own_dims, layer.positions, parent=None
                ).init_cache(batch, max_length, dtype)
                for layer in layers
            )

        return {
            "encoder": of_own(self.config.encoder),
            "decoder": of_own(self.config.decoder),
            "stack": of_layers(self.places(max_length)),
            "carried": self._start(batch, max_length, dtype),
        }

    @nn.nowrap
    def _start(
        self, batch: int, length: int, dtype: DTypeLike | None = None
    ) -> dict[str, jax.Array]:
        """What is carried from token to token beside the caches of layers, before the first."""
        d_model, dtype = self.dims.d_model, dtype or self.dims.dtype
        return {
            "key": jnp.zeros((batch, d_model), dtype),
            "segment": jnp.zeros((batch,), jnp.int32),  # of the last token
            "room": jnp.full((batch,), self.places(length), jnp.int32),  # chunks that may begin
            "position": jnp.zeros((batch,), jnp.int32),  # chunks of the last token's document
            "state": jnp.zeros((batch, d_model), jnp.promote_types(dtype, jnp.float32)),  # z̄
        }

    @nn.nowrap
    def _residual_of(self, part: str) -> Residual:
        """That of the layers of the encoder or the decoder."""
        return replace(self.residual, layers=getattr(self.config, part))

    @property
    def _own_dims(self) -> Dims:
        """Statistics of layers are those of the model's layers."""
        return replace(self.dims, statistics=False)

    @property
    def share(self) -> Share:
        return Share(1 / self.config.ratio, self.config.most)

    @nn.nowrap
    def own_flops(self, length: int) -> float:
        flops = 3 * 2.0 * self.dims.d_model**2  # the router's two matrices, and the one around
        flops += sum(mixer.flops(length) for mixer in self.own_mixers())
        for part in ("encoder", "decoder"):
            residual = self._residual_of(part)
            for layer in residual.layers:
                flops += residual.flops(layer, self.dims.d_model)
                if layer.ffn is not None:
                    flops += build_channel_mixer(layer.ffn, self.dims, parent=None).flops(length)
        return flops

    @nn.nowrap
    def own_cache_bytes(self, length: int) -> int:
        wide = jnp.promote_types(self.dims.dtype, jnp.float32).itemsize
        carried = self.dims.d_model * (jnp.dtype(self.dims.dtype).itemsize + wide) + 3 * 4
        return carried + sum(mixer.cache_bytes(length) for mixer in self.own_mixers())


def _one_by_one(
    layers: OfLayers, chunks: jax.Array, rows: RowInfo, chunking: Chunking, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Chunks [batch, places, d_model] through the model's layers, one of every row at a time: rows
    have different numbers of them, and a place that is not used may not enter a recurrent state.
    No layer runs where no row has a chunk."""

    def advance(carry: tuple[jax.Array, jax.Array, Cache]) -> tuple[jax.Array, jax.Array, Cache]:
        place, z, cache = carry

        def here(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, place, 1, axis=1)

        at = RowInfo(here(rows.positions), here(rows.segment_ids))
        one, longer, _ = layers(here(chunks), at, cache)
        z = jax.lax.dynamic_update_slice_in_dim(z, one, place, axis=1)
        return place + 1, z, choose_rows(here(chunking.used)[:, 0], longer, cache)

    most = jnp.max(chunking.begun[:, -1])
    start = (jnp.zeros_like(most), jnp.zeros_like(chunks), cache)
    _, z, cache = jax.lax.while_loop(lambda carry: carry[0] < most, advance, start)
    return z, cache


def _statistics(
    p: jax.Array, boundaries: jax.Array, real: jax.Array, chunking: Chunking
) -> dict[str, jax.Array]:
    chunks = jnp.sum(chunking.begins).astype(jnp.float32)
    return {
        "inputs/chunks": chunks,
        "inputs/overflow": jnp.sum(boundaries).astype(jnp.float32) - chunks,
        "inputs/boundary_probability": jnp.sum(jnp.where(real, p, 0)).astype(jnp.float32),
    }
