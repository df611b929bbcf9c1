"""What the output of the last layer is read as: a distribution over the next token."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.model.dims import Dims
from jaxformer.ops.cross_entropy import LossSums, cross_entropy
from jaxformer.ops.token_losses import (
    TokenLosses,
    TokenScores,
    logits_of,
    token_losses,
    token_scores,
)
from jaxformer.parallel.own_tokens import by_rows, over_rows
from jaxformer.parallel.rules import pad_vocabulary
from jaxformer.schema.kinds import Kind

PyTree = Any

OUTPUTS: dict[type["OutputsConfig"], type["Outputs"]] = {}  # filled below


class OutputsConfig(Kind):
    """The options of an output; `kind` names it."""

    registry = OUTPUTS


class Outputs(nn.Module):
    """Turns the last layer's output into logits, losses and scores.

    Its parameters lie at the top of the model's tree. The vocabulary has `num_tokens` entries; the
    rest up to `vocab_size` is padding, which has no probability in losses and scores. Arguments
    `weights` are what the method of that name returns.
    """

    config: OutputsConfig
    dims: Dims
    vocab_size: int
    num_tokens: int
    is_tied: bool
    logit_softcap: float | None

    def weights(self, table: jax.Array) -> PyTree:
        """What x is multiplied by; a tied output shares `table` [vocab, d_model], the inputs'
        matrix."""
        raise NotImplementedError

    def logits(self, weights: PyTree, x: jax.Array, num_tokens: int | None = None) -> jax.Array:
        """x [..., d_model] → [..., vocab], float32; −∞ from `num_tokens` on, if given."""
        raise NotImplementedError

    def loss(
        self,
        weights: PyTree,
        x: jax.Array,
        targets: jax.Array,
        loss_mask: jax.Array,
        z_loss: float,
    ) -> LossSums:
        """Sums over the tokens where loss_mask [batch, length] is set.

        Args:
            x: [batch, length, d_model].
            z_loss: the weight of log²Z.
        """
        raise NotImplementedError

    def scores(self, weights: PyTree, x: jax.Array, targets: jax.Array) -> TokenScores:
        """The model's scores of every target [batch, length]."""
        raise NotImplementedError

    def losses(self, weights: PyTree, x: jax.Array, targets: jax.Array) -> TokenLosses:
        """The losses of every target [batch, length]; gradients of any function of them."""
        raise NotImplementedError


class LinearConfig(OutputsConfig):
    """One product with a matrix."""

    kind: Literal["linear"] = "linear"


class Linear(Outputs):
    """logits = cap(W x), cap(y) = c · tanh(y / c) with a soft-cap c; W is the table when tied."""

    config: LinearConfig

    def setup(self) -> None:
        dims = self.dims
        if not self.is_tied:
            zero = dims.init.output == "zero"
            init = nn.initializers.zeros if zero else dims.init.matrix(dims.d_model)
            self.head = self.param(
                "head",
                nn.with_logical_partitioning(init, ("d_model", "vocab")),
                (dims.d_model, self.vocab_size),
                jnp.float32,
            )

    def weights(self, table: jax.Array) -> jax.Array:
        return table.T if self.is_tied else self.head

    def logits(self, weights: jax.Array, x: jax.Array, num_tokens: int | None = None) -> jax.Array:
        return logits_of(x, weights, self.logit_softcap, num_tokens)

    def loss(
        self,
        weights: jax.Array,
        x: jax.Array,
        targets: jax.Array,
        loss_mask: jax.Array,
        z_loss: float,
    ) -> LossSums:
        head = pad_vocabulary(weights)

        def sums(head: jax.Array, *rows: jax.Array) -> LossSums:
            x, targets, loss_mask = rows
            return cross_entropy(
                x,
                head,
                targets,
                loss_mask,
                z_loss=z_loss,
                logit_softcap=self.logit_softcap,
                num_tokens=self._cut(head),
            )

        return over_rows(sums)(head, x, targets, loss_mask)

    def scores(self, weights: jax.Array, x: jax.Array, targets: jax.Array) -> TokenScores:
        def of_rows(head: jax.Array, x: jax.Array, targets: jax.Array) -> TokenScores:
            softcap, cut = self.logit_softcap, self._cut(head)
            return token_scores(x, head, targets, logit_softcap=softcap, num_tokens=cut)

        return by_rows(of_rows)(pad_vocabulary(weights), x, targets)

    def losses(self, weights: jax.Array, x: jax.Array, targets: jax.Array) -> TokenLosses:
        def of_rows(head: jax.Array, x: jax.Array, targets: jax.Array) -> TokenLosses:
            softcap, cut = self.logit_softcap, self._cut(head)
            return token_losses(x, head, targets, logit_softcap=softcap, num_tokens=cut)

        return by_rows(of_rows)(pad_vocabulary(weights), x, targets)

    def _cut(self, head: jax.Array) -> int | None:
        """Where padding begins in a head as the mesh splits it; None if there is none."""
        return self.num_tokens if self.num_tokens < head.shape[1] else None


OUTPUTS |= {
    LinearConfig: Linear,
}
