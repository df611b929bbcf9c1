"""A decoder language model: embeddings, a stack of layers, a final norm and a head."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxformer.model.config import ModelConfig
from jaxformer.model.depth import DEPTHS, Depth
from jaxformer.model.depth.stack import KEYS
from jaxformer.model.dims import AUTOMATIC, Dims, KernelsConfig
from jaxformer.model.inputs import INPUTS
from jaxformer.model.lora import LoRAConfig, adapted
from jaxformer.model.mixers import Cache
from jaxformer.model.norms import Norm
from jaxformer.model.outputs import OUTPUTS
from jaxformer.model.residuals import build_residual
from jaxformer.model.rows import LayerAux
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
    measure themselves, see `Block`.
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

    def setup(self) -> None:
        config, dims = self.config, self.dims
        self.inputs = INPUTS[type(config.inputs)](
            config.inputs, dims, self.vocab_size, config.positions, config.scale_embeddings
        )
        self.stack = self.depth()
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
        x, _, _ = self.hidden(tokens, positions, segment_ids, order)
        return self.outputs.logits(self._head(), x)

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
            loss_mask: [batch, length], booleans, or the weight of every token's loss.
            order: what tokens see, if not the tokens before them.
        """
        x, head, aux = self.read(inputs, positions, segment_ids, order)
        return self.outputs.loss(head, x, targets, loss_mask, z_loss), aux

    def scores(
        self,
        inputs: jax.Array,
        targets: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        loss_mask: jax.Array,
        order: Order | None = None,
    ) -> TokenScores:
        """The scores of every target [batch, length]; 0 and True where loss_mask is not set."""
        x, head, _ = self.read(inputs, positions, segment_ids, order)
        scores = self.outputs.scores(head, x, targets)
        return TokenScores(jnp.where(loss_mask, scores.log_probs, 0.0), scores.greedy | ~loss_mask)

    def read(
        self,
        inputs: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        order: Order | None = None,
    ) -> tuple[jax.Array, PyTree, LayerAux]:
        """The outputs' input for rows [batch, length], which may be split over `context`, the
        outputs' weights, and the layers' losses and statistics."""
        module = self.clone(parent=None)

        def hidden(params: dict, keys: dict[str, jax.Array], *rows: jax.Array) -> tuple:
            x, _, aux = module.apply({"params": params}, *rows, method="hidden", rngs=keys)
            return x, aux

        keys = {name: self.make_rng(name) for name in KEYS if self.has_rng(name)}
        params = self.variables["params"]
        x, aux = over_context(hidden)(params, keys, inputs, positions, segment_ids, order)
        return x, self._head(), aux

    def step(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Continue from `cache` with tokens [batch, length]: logits of the last one, and the cache.

        Returns:
            ([batch, vocab] float32, the longer cache).
        """
        x, cache, _ = self.hidden(tokens, positions, segment_ids, cache=cache)
        return self.outputs.logits(self._head(), x[:, -1], self.num_tokens), cache

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike | None = None) -> Cache:
        """Caches of all layers for sequences of up to `max_length` tokens."""
        return self.depth(parent=None).init_cache(batch, max_length, dtype or self.dtype)

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
        x, rows = self.inputs(tokens, positions, segment_ids)
        rows = rows._replace(order=order)
        x = constrain_tokens(x, "d_model")
        with adapted(self.lora):
            x, cache, aux = self.stack(x, rows, cache)
        x = constrain_tokens(x, "d_model")  # no longer split over `tensor`
        x = x if self.config.norm.placement == "post" else self.final_norm(x)
        return x, cache, aux

    def _head(self) -> PyTree:
        return self.outputs.weights(self.inputs.table())

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
