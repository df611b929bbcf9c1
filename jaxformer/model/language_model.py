"""A decoder language model: embeddings, a stack of layers, a final norm and a head."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxformer.model.config import ModelConfig
from jaxformer.model.dims import Dims
from jaxformer.model.lora import LoRAConfig, adapted
from jaxformer.model.mixers import Cache
from jaxformer.model.norms import Norm
from jaxformer.model.positions import LearnedPositionsConfig, SinusoidalPositionsConfig, sinusoidal
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.model.stack import Stack
from jaxformer.ops.cross_entropy import LossSums, cross_entropy
from jaxformer.ops.kernels.choice import Kernel
from jaxformer.ops.token_losses import TokenScores, logits_of, token_scores
from jaxformer.parallel.context import over_context
from jaxformer.parallel.rows import by_rows, over_rows
from jaxformer.parallel.rules import constrain_tokens, pad_vocabulary


class LanguageModel(nn.Module):
    """logits_t = head(norm(layers(embed(tokens_{≤t})))).

    `remat` names what a layer keeps for its gradient; `layout` is how the stack is laid out, and
    `micro_batches` how many are at once in its stages, see `Stack`; `attention_kernel` see
    `ops.kernels.choice`; `lora` adds adapters. Parameters are float32, activations `dtype`, logits
    and losses float32. Ids from `num_tokens` on, if given, pad the vocabulary: they have no
    probability in losses and scores, and decoding draws none. With `statistics`, layers measure
    themselves, see `Block`.
    """

    config: ModelConfig
    vocab_size: int
    dtype: DTypeLike = jnp.float32
    remat: Literal["none", "dots", "full"] = "none"
    layout: Literal["scanned", "unrolled", "separate"] = "scanned"
    attention_kernel: Kernel = "auto"
    lora: LoRAConfig | None = None
    micro_batches: int | None = None
    num_tokens: int | None = None
    statistics: bool = False

    def setup(self) -> None:
        config, d_model = self.config, self.config.d_model
        std = d_model**-0.5 if config.init.std == "fan_in" else config.init.std
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(nn.initializers.normal(std), ("vocab", "d_model")),
            (self.vocab_size, d_model),
            jnp.float32,
        )
        if isinstance(config.positions, LearnedPositionsConfig):
            self.position_embedding = self.param(
                "position_embedding",
                nn.with_logical_partitioning(nn.initializers.normal(std), ("length", "d_model")),
                (config.positions.max_length, d_model),
                jnp.float32,
            )
        self.stack = self._stack()
        if config.norm.placement != "post":
            self.final_norm = Norm(config.norm)
        if not config.tie_embeddings:
            zero = config.init.output == "zero"
            init = nn.initializers.zeros if zero else config.init.matrix(d_model)
            self.head = self.param(
                "head",
                nn.with_logical_partitioning(init, ("d_model", "vocab")),
                (d_model, self.vocab_size),
                jnp.float32,
            )

    @property
    def dims(self) -> Dims:
        config = self.config
        return Dims(
            config.d_model,
            config.num_layers,
            config.init,
            self.dtype,
            self.attention_kernel,
            self.statistics,
        )

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """tokens [batch, length] → logits [batch, length, vocab], float32, of padding too.

        Args:
            positions: [batch, length], places in the document; 0, 1, 2, … when left out.
            segment_ids: [batch, length], the document of each token, 0 for padding; one document
                a row when left out.
        """
        x, _, _ = self.hidden(tokens, positions, segment_ids)
        return logits_of(x, self._head(), self.config.logit_softcap)

    def loss(
        self,
        inputs: jax.Array,
        targets: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        loss_mask: jax.Array,
        z_loss: float = 0.0,
    ) -> tuple[LossSums, LayerAux]:
        """Sums of the token losses over [batch, length], without ever holding all logits, and what
        the layers say."""
        x, head, aux = self.read(inputs, positions, segment_ids)
        num_tokens = self._first_padding(head)

        def sums(
            head: jax.Array, x: jax.Array, targets: jax.Array, loss_mask: jax.Array
        ) -> LossSums:
            return cross_entropy(
                x,
                head,
                targets,
                loss_mask,
                z_loss=z_loss,
                logit_softcap=self.config.logit_softcap,
                num_tokens=num_tokens,
            )

        return over_rows(sums)(head, x, targets, loss_mask), aux

    def scores(
        self,
        inputs: jax.Array,
        targets: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        loss_mask: jax.Array,
    ) -> TokenScores:
        """Of every target [batch, length]; where loss_mask is not set, 0 and True."""
        x, head, _ = self.read(inputs, positions, segment_ids)
        tokens = self._first_padding(head)

        def of_rows(head: jax.Array, x: jax.Array, targets: jax.Array) -> TokenScores:
            softcap = self.config.logit_softcap
            return token_scores(x, head, targets, logit_softcap=softcap, num_tokens=tokens)

        scores = by_rows(of_rows)(head, x, targets)
        return TokenScores(jnp.where(loss_mask, scores.log_probs, 0.0), scores.greedy | ~loss_mask)

    def read(
        self, inputs: jax.Array, positions: jax.Array, segment_ids: jax.Array
    ) -> tuple[jax.Array, jax.Array, LayerAux]:
        """What the head reads of rows [batch, length], which may be cut over `context`, the head as
        the mesh splits it, and what the layers say: ([batch, length, d_model],
        [d_model, vocab and padding], [layers] each)."""
        module = self.clone(parent=None)

        def hidden(params: dict, keys: dict[str, jax.Array], *rows: jax.Array) -> tuple:
            x, _, aux = module.apply({"params": params}, *rows, method="hidden", rngs=keys)
            return x, aux

        keys = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
        params = self.variables["params"]
        x, aux = over_context(hidden)(params, keys, inputs, positions, segment_ids)
        return x, pad_vocabulary(self._head()), aux

    def step(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Continue from `cache` with tokens [batch, length]: logits of the last one, and the cache.

        Returns:
            ([batch, vocab] float32, the longer cache).
        """
        x, cache, _ = self.hidden(tokens, positions, segment_ids, cache)
        softcap = self.config.logit_softcap
        return logits_of(x[:, -1], self._head(), softcap, self.num_tokens), cache

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int, dtype: DTypeLike | None = None) -> Cache:
        """Caches of all layers for sequences of up to `max_length` tokens."""
        stack = self._stack(parent=None)
        return stack.init_cache(batch, max_length, dtype or self.dtype)

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None, LayerAux]:
        """tokens [batch, length] → what the head reads [batch, length, d_model], the cache, and
        what the layers say."""
        config = self.config
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        x = self.embedding.at[tokens].get(mode="clip").astype(self.dtype)
        if scale := config.scale_embeddings:
            x *= jnp.asarray(math.sqrt(config.d_model) if scale is True else scale, self.dtype)
        if isinstance(config.positions, LearnedPositionsConfig):
            x += self.position_embedding.at[positions].get(mode="clip").astype(self.dtype)
        elif isinstance(config.positions, SinusoidalPositionsConfig):
            x += sinusoidal(positions, config.d_model).astype(self.dtype)
        x = constrain_tokens(x, "d_model")
        with adapted(self.lora):
            x, cache, aux = self.stack(x, RowInfo(positions, segment_ids), cache)
        x = constrain_tokens(x, "d_model")  # no longer cut over `tensor`
        x = x if config.norm.placement == "post" else self.final_norm(x)
        return x, cache, aux

    def _head(self) -> jax.Array:
        return self.embedding.T if self.config.tie_embeddings else self.head

    def _first_padding(self, head: jax.Array) -> int | None:
        """The first entry of a head as the mesh splits it that is padding, if any is."""
        is_padded = head.shape[1] > self.vocab_size
        return self.num_tokens or (self.vocab_size if is_padded else None)

    @nn.nowrap
    def _stack(self, **place: None) -> Stack:
        config = self.config
        pattern_length = len(config.pattern)
        return Stack(
            config.layers(),
            pattern_length,
            config.norm,
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
    attention_kernel: Kernel = "auto",
    lora: LoRAConfig | None = None,
) -> LanguageModel:
    """The module that `config` describes. `vocab_size` is the tokenizer's; what the configuration
    has beyond it is padding.

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
        attention_kernel,
        lora,
        num_tokens=vocab_size if vocab_size is not None and vocab_size < size else None,
    )
