"""A decoder language model: embeddings, a stack of layers, a final norm and a head."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxformer.model.config import ModelConfig
from jaxformer.model.depth import DEPTHS, Depth
from jaxformer.model.depth.stack import KEYS
from jaxformer.model.dims import AUTOMATIC, Dims, KernelsConfig
from jaxformer.model.exit_losses import exit_losses
from jaxformer.model.further import FURTHER, Further
from jaxformer.model.inputs import INPUTS, Inputs
from jaxformer.model.lora import LoRAConfig, adapted
from jaxformer.model.mixers import Cache
from jaxformer.model.norms import Norm
from jaxformer.model.outputs import OUTPUTS
from jaxformer.model.residuals import build_residual, scaled
from jaxformer.model.rows import Exits, LayerAux, RowInfo
from jaxformer.ops.attention import Order
from jaxformer.ops.cross_entropy import LossSums
from jaxformer.ops.token_losses import TokenScores
from jaxformer.parallel.context import over_context
from jaxformer.parallel.rules import constrain_tokens

PyTree = Any


class LanguageModel(nn.Module):
    """logits_t = head(norm(layers(embed(tokens_{≤t})))).

    `remat` names what a layer keeps for its gradient; `lora` adds adapters. For `layout` and
    `micro_batches` see `Depth`, for `kernels` `KernelsConfig`. Parameters are float32, activations
    `dtype`, logits and losses float32. Ids from `num_tokens` on, if given, pad the vocabulary: they
    have no probability in losses and scores, and decoding draws none. With `statistics`, layers
    measure themselves, see `Block`. Of caches, up to `taken_back` of the newest tokens can be taken
    back, see `Depth.take_back`, for which recurrences keep states unless `keeps_states` is false.
    """

    config: ModelConfig
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
        config, dims = self.config, self.dims
        self.inputs = self.input_part()
        self.stack = self.depth()
        if config.further is not None:
            self.further = self.further_predictions()
        if config.norm.placement != "post":
            self.final_norm = Norm(config.norm)
        self.outputs = OUTPUTS[type(config.outputs)](
            config.outputs,
            dims,
            self.vocab_size,
            self.num_tokens or self.vocab_size,
            config.tie_embeddings,
            config.logit_softcap,
        )
        nn.share_scope(self, self.inputs)
        nn.share_scope(self, self.outputs)

    @property
    def dims(self) -> Dims:
        config = self.config
        return Dims(
            config.d_model,
            config.num_layers,
            config.init,
            self.dtype,
            self.kernels,
            self.statistics,
            self.taken_back,
            self.keeps_states,
        )

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        order: Order | None = None,
    ) -> jax.Array:
        """tokens [batch, length] → logits [batch, length, vocab], float32, also for padding.

        Args:
            positions: [batch, length], places in the document; 0, 1, 2, … when left out.
            segment_ids: [batch, length], the document of each token, 0 for padding; one document
                per row when left out.
            order: what tokens see, if not the tokens before them.
        """
        x, _, _ = self.trunk(tokens, positions, segment_ids, order)
        if self.is_initializing() and self.config.further is not None:
            rows = self._rows(tokens, positions, segment_ids, order)
            self.predict_further(x, [(tokens, rows)] * self.config.further.count)
        return self.outputs.logits(self.head(), self.normed(x))

    def loss(
        self,
        inputs: jax.Array,
        targets: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        loss_mask: jax.Array,
        z_loss: float = 0.0,
        order: Order | None = None,
    ) -> tuple[LossSums, LayerAux]:
        """Sums of the token losses over [batch, length], without ever holding all logits, and the
        layers' losses and statistics.

        Args:
            targets: [batch, n] for the first n ≤ length inputs of each row.
            loss_mask: [batch, n], booleans, or the weight of every token's loss.
            order: what tokens see, if not the tokens before them.
        """
        x, head, aux = self._read(inputs, positions, segment_ids, order)
        length = targets.shape[1]
        if aux.exits is None:
            return self.outputs.loss(head, x[:, :length], targets, loss_mask, z_loss), aux
        exits = aux.exits._replace(
            states=aux.exits.states[:, :, :length], weights=aux.exits.weights[:, :, :length]
        )
        sums, each = exit_losses(self.outputs, head, exits, targets, loss_mask, z_loss)
        # Statistics are divided by the tokens that are not padding.
        each *= jnp.sum(segment_ids != 0) / jnp.maximum(sums.tokens, 1.0)
        losses = {f"exit_{number}": each[number - 1, None] for number in range(1, len(each) + 1)}
        return sums, aux._replace(stats=aux.stats | losses, exits=None)

    def scores(
        self,
        inputs: jax.Array,
        targets: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        loss_mask: jax.Array,
        order: Order | None = None,
    ) -> tuple[TokenScores, LayerAux]:
        """The scores of every target [batch, length], 0 and True where loss_mask is not set, and
        the layers' losses and statistics."""
        x, head, aux = self.read(inputs, positions, segment_ids, order)
        scores = self.outputs.scores(head, x, targets)
        log_probs = jnp.where(loss_mask, scores.log_probs, 0.0)
        return TokenScores(log_probs, scores.greedy | ~loss_mask), aux

    def read(
        self,
        inputs: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        order: Order | None = None,
    ) -> tuple[jax.Array, PyTree, LayerAux]:
        """The outputs' input for rows [batch, length], which may be split over `context`, the
        outputs' weights, and the layers' losses and statistics."""
        x, head, aux = self._read(inputs, positions, segment_ids, order)
        return x, head, aux._replace(exits=None)

    def _read(
        self,
        inputs: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        order: Order | None,
    ) -> tuple[jax.Array, PyTree, LayerAux]:
        module = self.clone(parent=None)

        def hidden(params: dict, keys: dict[str, jax.Array], *rows: jax.Array) -> tuple:
            x, _, aux = module.apply({"params": params}, *rows, method="hidden", rngs=keys)
            made, enabled = x, None
            if aux.exits is not None:
                # Arrays of rows begin with [batch, length].
                states = jnp.moveaxis(aux.exits.states, 0, 2)
                made = (x, states, jnp.moveaxis(aux.exits.weights, 0, 2))
                enabled = aux.exits.enabled.astype(jnp.float32)
            return made, (aux._replace(exits=None), enabled)

        keys = {name: self.make_rng(name) for name in KEYS if self.has_rng(name)}
        params = self.variables["params"]
        rows = (inputs, positions, segment_ids, order)
        made, (aux, enabled) = over_context(hidden)(params, keys, *rows)
        if enabled is None:
            return made, self.head(), aux
        x, states, weights = made
        exits = Exits(jnp.moveaxis(states, 2, 0), jnp.moveaxis(weights, 2, 0), enabled > 0)
        return x, self.head(), aux._replace(exits=exits)

    def step(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Continue from `cache` with tokens [batch, length]: logits of the last one, and the cache.

        Returns:
            ([batch, vocab] float32, the longer cache).
        """
        x, cache, _ = self.trunk(tokens, positions, segment_ids, cache=cache)
        return self.logits(x[:, -1]), cache

    def logits(self, x: jax.Array) -> jax.Array:
        """The last layer's output [..., d_model], as `trunk` gives it → logits [..., vocab],
        float32; −∞ for ids that pad the vocabulary."""
        return self.outputs.logits(self.head(), self.normed(x), self.num_tokens)

    def predict(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        order: Order | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Logits of all tokens [batch, length], which continue from `cache` if one is given: those
        of padding in the vocabulary are −∞.

        Returns:
            ([batch, length, vocab] float32, the longer cache or None).
        """
        x, cache, _ = self.hidden(tokens, positions, segment_ids, order, cache)
        return self.outputs.logits(self.head(), x, self.num_tokens), cache

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike | None = None) -> Cache:
        """Caches of all layers for sequences of up to `max_length` tokens."""
        dtype = dtype or self.dtype

        def of_layers(length: int) -> Cache:
            return self.depth(parent=None).init_cache(batch, length, dtype)

        return self.input_part(parent=None).init_cache(batch, max_length, dtype, of_layers)

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        order: Order | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        """tokens [batch, length] → the outputs' input [batch, length, d_model], the cache, and the
        layers' losses and statistics."""
        x, cache, aux = self.trunk(tokens, positions, segment_ids, order, cache)
        if aux.exits is not None:
            normed = self.normed(aux.exits.states)
            aux = aux._replace(exits=aux.exits._replace(states=normed))
        return self.normed(x), cache, aux

    def trunk(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        order: Order | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        """Like `hidden`, before the final norm."""
        rows = self._rows(tokens, positions, segment_ids, order)
        with adapted(self.lora):
            return self.inputs(tokens, rows, self._layers, cache)

    def _rows(
        self,
        tokens: jax.Array,
        positions: jax.Array | None,
        segment_ids: jax.Array | None,
        order: Order | None,
    ) -> RowInfo:
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        return RowInfo(positions, segment_ids, order, tokens)

    def _layers(
        self, x: jax.Array, rows: RowInfo, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        x = constrain_tokens(x, "d_model")
        if cache is None:
            x, cache, aux = self.stack(x, rows)
        else:  # a pure function, which inputs may call in a loop
            params = self.variables["params"].get("stack", {})
            x, cache, aux = self.depth(parent=None).apply({"params": params}, x, rows, cache)
        return constrain_tokens(x, "d_model"), cache, aux  # no longer split over `tensor`

    def normed(self, x: jax.Array) -> jax.Array:
        """The outputs' input, of the last layer's output [..., d_model]. Whatever scales it scales
        every logit, and it is smaller than they are."""
        return scaled(self.bare_normed(x), self.config.logit_scale)

    def bare_normed(self, x: jax.Array) -> jax.Array:
        return x if self.config.norm.placement == "post" else self.final_norm(x)

    def predict_further(
        self, x: jax.Array, ahead: Sequence[tuple[jax.Array, RowInfo]]
    ) -> tuple[list[jax.Array], jax.Array | None]:
        """The outputs' input of every further prediction, and the sum of their layers' losses; see
        `Further.every`."""
        with adapted(self.lora):
            made, loss = self.further.every(self.further_input(x), ahead, self.embed)
        return [self.further_normed(constrain_tokens(y, "d_model")) for y in made], loss

    def further_input(self, x: jax.Array) -> jax.Array:
        """What further predictions read of the last layer's output [..., d_model]."""
        return self.bare_normed(x) if self.further.own_norms else x

    def further_normed(self, y: jax.Array) -> jax.Array:
        """The outputs' input, of what a further prediction made."""
        return scaled(y, self.config.logit_scale) if self.further.own_norms else self.normed(y)

    def embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """What the layers read of tokens [batch, length] where inputs see one at a time."""
        x = self.inputs.embed(tokens, RowInfo(positions, jnp.ones_like(tokens)))
        return constrain_tokens(x, "d_model")

    def head(self) -> PyTree:
        """The outputs' weights."""
        return self.outputs.weights(self.inputs.table())

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
            build_residual(config.residual, config.norm),
            self.remat,
            **place,
        )

    @nn.nowrap
    def depth(self, **place: None) -> Depth:
        """All layers; `place` is parent=None outside of the model."""
        config = self.config
        return DEPTHS[type(config.depth)](
            config.depth,
            config.layers(),
            len(config.pattern),
            build_residual(config.residual, config.norm),
            self.dims,
            self.remat,
            self.layout,
            self.micro_batches,
            len(config.first),
            **place,
        )

    @nn.nowrap
    def further_predictions(self, **place: None) -> Further:
        """What `model.further` describes; `place` is parent=None outside of the model."""
        config = self.config
        assert config.further is not None
        kind = FURTHER[type(config.further)]
        taken_back = max(self.taken_back, config.further.lag)
        return kind(
            config.further,
            config.further_layer(),
            build_residual(config.residual, config.norm),
            config.norm,
            dataclasses.replace(self.dims, taken_back=taken_back),
            self.remat,
            **place,
        )


def build_model(
    config: ModelConfig,
    *,
    vocab_size: int | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: Literal["none", "dots", "full"] = "none",
    layout: Literal["scanned", "unrolled", "separate"] = "scanned",
    kernels: KernelsConfig = AUTOMATIC,
    lora: LoRAConfig | None = None,
) -> LanguageModel:
    """The module that `config` describes. `vocab_size` is the tokenizer's; ids that the
    configuration has beyond it are padding.

    Raises:
        ValueError: when neither gives a vocabulary size.
    """
    size = config.vocab_size or vocab_size
    if size is None:
        raise ValueError("model.vocab_size is not set and no tokenizer gives it; pass vocab_size")
    return LanguageModel(
        config,
        size,
        dtype,
        remat,
        layout,
        kernels,
        lora,
        num_tokens=vocab_size if vocab_size is not None and vocab_size < size else None,
    )
