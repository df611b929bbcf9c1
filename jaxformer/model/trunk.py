"""Inputs, a stack of layers and a final norm: an encoder, or a language model below its outputs."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxformer.model.depth import DEPTHS, Depth
from jaxformer.model.dims import AUTOMATIC, Dims, KernelsConfig
from jaxformer.model.dropout import Dropout
from jaxformer.model.inputs import INPUTS, Inputs
from jaxformer.model.layer import count_sublayers
from jaxformer.model.lora import LoRAConfig, adapted
from jaxformer.model.mixers import Cache
from jaxformer.model.norms import Norm
from jaxformer.model.placements import PLACEMENTS
from jaxformer.model.positions import RelativePositionsConfig
from jaxformer.model.relative_positions import bias_heads, with_bias
from jaxformer.model.residuals import build_residual
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.model.trunk_config import TrunkConfig
from jaxformer.ops.attention import Order
from jaxformer.parallel.rules import constrain_tokens


class Trunk(nn.Module):
    """y = norm(layers(dropout(inputs))).

    `remat` names what a layer keeps for its gradient; `lora` adds adapters. For `layout` and
    `micro_batches` see `Depth`, for `kernels` `KernelsConfig`. Parameters are float32, activations
    `dtype`. Ids from `num_tokens` on, if given, pad the vocabulary. With `statistics`, layers
    measure themselves, see `Block`. Of caches, up to `taken_back` of the newest tokens can be taken
    back, see `Depth.take_back`, for which recurrences keep states unless `keeps_states` is false.
    """

    config: TrunkConfig
    vocab_size: int
    dtype: DTypeLike = jnp.float32
    remat: Literal["none", "dots", "full"] = "none"
    layout: Literal["scanned", "unrolled", "separate"] = "scanned"
    kernels: KernelsConfig = AUTOMATIC
    lora: LoRAConfig | None = None
    micro_batches: int | None = None
    num_tokens: int | None = None
    statistics: bool = False
    taken_back: int = 0
    keeps_states: bool = True

    def setup(self) -> None:
        config = self.config
        self.inputs = self.input_part()
        self.dropout = Dropout(config.residual.dropout)
        self.stack = self.depth()
        if isinstance(config.positions, RelativePositionsConfig):
            shape = (bias_heads(config.distinct_layers()), config.positions.num_buckets)
            start = config.init.matrix(config.d_model)
            start = nn.with_logical_partitioning(start, ("heads", "buckets"))
            self.relative_bias = self.param("relative_bias", start, shape, jnp.float32)
        if config.norm.has_final_norm:
            self.final_norm = Norm(config.norm)
        nn.share_scope(self, self.inputs)

    @property
    def dims(self) -> Dims:
        config, init = self.config, self.config.init
        gain = PLACEMENTS[config.norm.placement].gain(count_sublayers(config.layers()))
        if gain is not None:
            init = init.with_gain(gain)
        return Dims(
            config.d_model,
            config.num_layers,
            init,
            self.dtype,
            self.kernels,
            self.statistics,
            self.taken_back,
            self.keeps_states,
            config.order == "causal",
            config.inputs.grid,
            sub_norm=config.norm if config.norm.placement == "sub" else None,
        )

    def trunk(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        order: Order | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        """tokens [batch, length] → the last layer's output [batch, length, d_model], the cache, and
        the layers' losses and statistics."""
        return self.of_rows(tokens, self.rows_of(tokens, positions, segment_ids, order), cache)

    def of_rows(
        self, tokens: jax.Array, rows: RowInfo, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        """`trunk` of tokens of which `rows` are known."""
        with adapted(self.lora):
            return self.inputs(tokens, rows, self._layers, cache)

    def rows_of(
        self,
        tokens: jax.Array,
        positions: jax.Array | None,
        segment_ids: jax.Array | None,
        order: Order | None = None,
    ) -> RowInfo:
        """What is known of rows, each of one document unless said otherwise."""
        alone = self.inputs.rows_of(tokens)
        return RowInfo(
            alone.positions if positions is None else positions,
            alone.segment_ids if segment_ids is None else segment_ids,
            order,
            tokens,
        )

    def _layers(
        self, x: jax.Array, rows: RowInfo, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        x, rows = constrain_tokens(x, "d_model"), self.rows_of_layers(rows)
        if cache is None:
            x, cache, aux = self.stack(self.dropout(x), rows)
        else:  # a pure function, which inputs may call in a loop
            params = self.variables["params"].get("stack", {})
            x, cache, aux = self.depth(parent=None).apply({"params": params}, x, rows, cache)
        return constrain_tokens(x, "d_model"), cache, aux  # no longer split over `tensor`

    def rows_of_layers(self, rows: RowInfo) -> RowInfo:
        """The rows as the layers need them."""
        if isinstance(self.config.positions, RelativePositionsConfig):
            return with_bias(rows, self.relative_bias)
        return rows

    def bare_normed(self, x: jax.Array) -> jax.Array:
        """The final norm, if there is one, of the last layer's output."""
        return self.final_norm(x) if self.config.norm.has_final_norm else x

    def embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """What the layers read of tokens [batch, length] where inputs see one at a time."""
        x = self.inputs.embed(tokens, RowInfo(positions, jnp.ones_like(tokens)))
        return constrain_tokens(x, "d_model")

    @nn.nowrap
    def input_part(self, **place: None) -> Inputs:
        """What turns tokens into the layers' input; `place` is parent=None outside of the model."""
        config = self.config
        return INPUTS[type(config.inputs)](
            config.inputs,
            self.dims,
            self.vocab_size,
            config.positions,
            config.scale_embeddings,
            build_residual(config.residual, config.norm, config.inputs.own_layers),
            self.remat,
            **place,
        )

    @nn.nowrap
    def depth(self, **place: None) -> Depth:
        """All layers; `place` is parent=None outside of the model."""
        config, layers = self.config, self.config.layers()
        return DEPTHS[type(config.depth)](
            config.depth,
            layers,
            len(config.pattern),
            build_residual(config.residual, config.norm, layers),
            self.dims,
            self.remat,
            self.layout,
            self.micro_batches,
            len(config.first),
            **place,
        )

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike | None = None) -> Cache:
        """Caches of all layers for sequences of up to `max_length` tokens."""
        dtype = dtype or self.dtype

        def of_layers(length: int) -> Cache:
            return self.depth(parent=None).init_cache(batch, length, dtype)

        return self.input_part(parent=None).init_cache(batch, max_length, dtype, of_layers)
