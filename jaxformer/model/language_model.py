"""Inputs, a stack of layers, a final norm and outputs: a model of text, pictures or sound."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxformer.batch import Pair, Source
from jaxformer.model.config import ModelConfig
from jaxformer.model.depth.stack import KEYS
from jaxformer.model.dims import AUTOMATIC, Dims, KernelsConfig, SourceDims
from jaxformer.model.exit_losses import exit_losses
from jaxformer.model.further import FURTHER, Further
from jaxformer.model.inputs import SharedTokensConfig
from jaxformer.model.lora import LoRAConfig, adapted
from jaxformer.model.mixers import Cache
from jaxformer.model.outputs import OUTPUTS
from jaxformer.model.residuals import build_residual, scaled
from jaxformer.model.rows import Exits, LayerAux, Memory, RowInfo
from jaxformer.model.trunk import Trunk
from jaxformer.model.trunk_config import EncoderConfig
from jaxformer.ops.attention import Order
from jaxformer.ops.cross_entropy import LossSums
from jaxformer.ops.token_losses import TokenScores
from jaxformer.parallel.context import over_context
from jaxformer.parallel.rules import constrain_tokens

PyTree = Any


class LanguageModel(Trunk):
    """logits_t = head(norm(layers(embed(tokens_{≤t})))).

    For its options see `Trunk`. Logits and losses are float32. Ids that pad the vocabulary have no
    probability in losses and scores, and decoding draws none. With `config.encoder`, inputs are a
    `Pair`: layers that read the source see what the encoder makes of it.
    """

    config: ModelConfig

    def setup(self) -> None:
        super().setup()
        config = self.config
        if config.encoder is not None:
            self.encoder = self.encoder_part(config.encoder)
        if config.further is not None:
            self.further = self.further_predictions()
        self.outputs = OUTPUTS[type(config.outputs)](
            config.outputs,
            self.dims,
            self.output_size,
            self.num_tokens or self.output_size,
            config.tie_embeddings,
            config.logit_softcap,
            config.norm,
        )
        nn.share_scope(self, self.outputs)

    @property
    def output_size(self) -> int:
        """How many numbers the outputs give at once: those of the vocabulary, or of a place."""
        return self.config.numbers or self.vocab_size

    @property
    def dims(self) -> Dims:
        encoder = self.config.encoder
        source = None if encoder is None else SourceDims(encoder.d_model, encoder.length)
        return dataclasses.replace(super().dims, source=source)

    def __call__(
        self,
        tokens: jax.Array | Pair,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        order: Order | None = None,
    ) -> jax.Array:
        """tokens [batch, length], or a pair of them and a source → logits [batch, length, vocab],
        float32, also for padding; or pictures [batch, height, width, channels] → logits
        [batch, classes]; or recordings [batch, samples] → logits [batch, places, vocab]; or, with
        outputs that compare, pairs → logits of all tokens' rows for all sources [batch, batch].
        Outputs of numbers give these for logits.

        Args:
            positions: [batch, length], places in the document; 0, 1, 2, … when left out.
            segment_ids: [batch, length], the document of each token, 0 for padding; one document
                per row when left out.
            order: what tokens see, if not the tokens before them.
        """
        own, rows, _ = self._with_memory(tokens, positions, segment_ids, order)
        x, _, _ = self.of_rows(own, rows)
        if self.is_initializing() and self.config.further is not None:
            self.predict_further(x, [(own, rows)] * self.config.further.count)
        return self.outputs.logits(
            self.head(), self.outputs.pooled(self.normed(x), self._rows_of_outputs(rows))
        )

    def loss(
        self,
        inputs: jax.Array,
        targets: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        loss_mask: jax.Array,
        z_loss: float = 0.0,
        order: Order | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[LossSums, LayerAux]:
        """Sums of the token losses over [batch, length], without ever holding all logits, and the
        layers' losses and statistics.

        Args:
            targets: [batch, n] for the first n ≤ length inputs of each row.
            loss_mask: [batch, n], booleans, or the weight of every token's loss.
            order: what tokens see, if not the tokens before them.
            label_smoothing: see `cross_entropy`; not for depths that are trained through exits.
        """
        x, head, aux = self._read(inputs, positions, segment_ids, order)
        length = targets.shape[1]
        if aux.exits is None:
            sums = self.outputs.loss(
                head, x[:, :length], targets, loss_mask, z_loss, label_smoothing
            )
            return sums, aux
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

        params = self.variables["params"]
        rows = (inputs, positions, segment_ids, order)
        made, (aux, enabled) = over_context(hidden)(params, self._keys(), *rows)
        if enabled is None:
            return made, self.head(), aux
        x, states, weights = made
        exits = Exits(jnp.moveaxis(states, 2, 0), jnp.moveaxis(weights, 2, 0), enabled > 0)
        return x, self.head(), aux._replace(exits=exits)

    def _keys(self) -> dict[str, jax.Array]:
        return {name: self.make_rng(name) for name in (*KEYS, "noise") if self.has_rng(name)}

    def classify(
        self, inputs: jax.Array, positions: jax.Array, segment_ids: jax.Array
    ) -> tuple[jax.Array, LayerAux]:
        """Logits of the classes of rows [batch, classes], float32, and the layers' losses and
        statistics; −∞ for classes that pad their number."""
        x, head, aux = self.read(inputs, positions, segment_ids)
        rows = self._rows_of_outputs(RowInfo(positions, segment_ids))
        return self.outputs.logits(head, self.outputs.pooled(x, rows), self.num_tokens), aux

    def compare(
        self, inputs: Pair, positions: jax.Array, segment_ids: jax.Array
    ) -> tuple[Any, PyTree, LayerAux]:
        """Of pairs, whose outputs compare their sides: both sides' vectors, the outputs' weights,
        and the losses of both sides' layers with the statistics of the tokens'."""
        module = self.clone(parent=None)

        def encoded(params: dict, keys: dict[str, jax.Array], *source: jax.Array) -> tuple:
            return module.apply({"params": params}, *source, method="encode", rngs=keys)

        x, head, aux = self.read(inputs.tokens, positions, segment_ids)
        read = self.encoder.rows_of(*inputs.source)
        source = (inputs.source.inputs, read.positions, read.segment_ids)
        memory, loss = over_context(encoded)(self.variables["params"], self._keys(), *source)
        rows = self._rows_of_outputs(RowInfo(positions, segment_ids, memory=memory))
        return self.outputs.pooled(x, rows), head, _with_loss(aux, loss)

    def vectors(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """What outputs that compare make of rows of tokens alone: [batch, width], of length 1."""
        rows = self.rows_of(tokens, positions, segment_ids)
        x, _, _ = self.of_rows(tokens, rows)
        segments = self._rows_of_outputs(rows).segment_ids
        return self.outputs.vectors("tokens", self.normed(x), segments)

    def source_vectors(self, inputs: jax.Array) -> jax.Array:
        """What outputs that compare make of sources alone: [batch, width], of length 1."""
        memory, _ = self.encode(inputs)
        return self.outputs.vectors("source", *memory)

    def regress(
        self, inputs: PyTree, positions: jax.Array, segment_ids: jax.Array
    ) -> tuple[jax.Array, LayerAux]:
        """The numbers that outputs give for each place of the batch, [batch, length, numbers],
        float32, and the layers' losses and statistics."""
        x, head, aux = self.read(inputs, positions, segment_ids)
        return self.outputs.logits(head, x[:, -positions.shape[1] :]), aux

    def step(
        self,
        tokens: jax.Array | Pair,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: Cache,
    ) -> tuple[jax.Array, Cache]:
        """Continue from `cache` with tokens [batch, length]: logits of the last one, and the cache.
        The first tokens of a decoder come as a `Pair` with their sources, which the cache keeps.

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
        tokens: jax.Array | Pair,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        order: Order | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        """Like `hidden`, before the final norm. The source of a pair may also be a `Memory`, what
        `encode` has made of it."""
        own, rows, loss = self._with_memory(tokens, positions, segment_ids, order)
        x, cache, aux = self.of_rows(own, rows, cache)
        return x, cache, _with_loss(aux, loss)

    def _with_memory(
        self,
        tokens: jax.Array | Pair,
        positions: jax.Array | None,
        segment_ids: jax.Array | None,
        order: Order | None,
    ) -> tuple[jax.Array, RowInfo, jax.Array | None]:
        """The tokens of a pair, their rows with what the encoder makes of the source, and the loss
        of its layers."""
        own, memory = tokens if isinstance(tokens, Pair) else (tokens, None)
        loss = None
        if isinstance(memory, Source):
            memory, loss = self.encode(*memory)
        rows = self.rows_of(own, positions, segment_ids, order)
        return own, rows._replace(memory=memory), loss

    def _rows_of_outputs(self, rows: RowInfo) -> RowInfo:
        """The rows of the outputs' input, with the memory of the batch's."""
        return self.inputs.rows_of_outputs(rows)._replace(memory=rows.memory)

    def encode(
        self,
        inputs: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[Memory, jax.Array | None]:
        """What the encoder makes of sources, and the loss of its layers, if they have one."""
        encoder = self.encoder
        if isinstance(encoder.config.inputs, SharedTokensConfig):
            inputs = self.inputs.look_up(inputs)
        x, _, aux = encoder.trunk(inputs, positions, segment_ids)
        rows = encoder.rows_of(inputs, positions, segment_ids)
        segments = encoder.inputs.rows_of_outputs(rows).segment_ids
        return Memory(encoder.bare_normed(x), segments), aux.loss

    def normed(self, x: jax.Array) -> jax.Array:
        """The outputs' input, of the last layer's output [..., d_model]. Whatever scales it scales
        every logit, and it is smaller than they are."""
        return scaled(self.outputs.prepared(self.bare_normed(x)), self.config.logit_scale)

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
        if not self.further.own_norms:
            return self.normed(y)
        return scaled(self.outputs.prepared(y), self.config.logit_scale)

    def head(self) -> PyTree:
        """The outputs' weights."""
        has_table = self.config.inputs.has_table
        return self.outputs.weights(self.inputs.table() if has_table else None)

    @nn.nowrap
    def encoder_part(self, config: EncoderConfig, **place: None) -> Trunk:
        """What reads sources; `place` is parent=None outside of the model."""
        fields = ("dtype", "remat", "layout", "kernels", "lora", "micro_batches", "num_tokens")
        shared = {name: getattr(self, name) for name in fields}
        return Trunk(config, self.vocab_size, **shared, **place)

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
            build_residual(config.residual, config.norm, [config.further_layer()]),
            config.norm,
            dataclasses.replace(self.dims, taken_back=taken_back),
            self.remat,
            **place,
        )


def _with_loss(aux: LayerAux, loss: jax.Array | None) -> LayerAux:
    """What layers say, with one more loss."""
    if loss is None:
        return aux
    return aux._replace(loss=loss if aux.loss is None else loss + aux.loss)


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
