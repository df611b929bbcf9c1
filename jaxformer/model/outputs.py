"""What the last layer's output is read as: a distribution over tokens or classes, or numbers."""

import math
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from jaxformer.model.channel_mixers.dense import ACTIVATIONS
from jaxformer.model.dims import Dims
from jaxformer.model.norms import Norm, NormConfig
from jaxformer.model.pooling import pool
from jaxformer.model.projections import Projection
from jaxformer.model.rows import RowInfo
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
    # Whether it may share the inputs' table of embeddings.
    can_be_tied: ClassVar[bool] = True
    # Whether a row has one output, instead of one per token.
    of_rows: ClassVar[bool] = False
    # Whether it reads what an encoder makes of the source.
    reads_source: ClassVar[bool] = False
    # Whether it gives the numbers that stand at a place, instead of logits.
    of_numbers: ClassVar[bool] = False

    def check(self, d_model: int, d_source: int | None) -> None:
        """Check that it can be built on a model of this width, with an encoder of that one.

        Raises:
            ValueError: saying what does not fit, and what would.
        """

    def flops(self, dims: Dims, vocab_size: int, length: int) -> float:
        """Forward FLOPs per output, of rows of `length` tokens."""
        return 2.0 * dims.d_model * vocab_size + self.own_flops(dims.d_model, vocab_size)

    def own_flops(self, d_model: int, vocab_size: int) -> float:
        """Forward FLOPs per output of what it has besides a matrix [d_model, vocab]."""
        return 0.0


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
    norm: NormConfig  # of the model's layers

    def prepared(self, x: jax.Array) -> jax.Array:
        """The outputs' input, which all below reads, of the last layer's output after its norm."""
        return x

    def weights(self, table: jax.Array | None) -> PyTree:
        """What x is multiplied by; a tied output shares `table` [vocab, d_model], the inputs'
        matrix if they have one."""
        raise NotImplementedError

    def logits(self, weights: PyTree, x: Any, num_tokens: int | None = None) -> jax.Array:
        """x [..., d_model] → [..., vocab], float32; −∞ from `num_tokens` on, if given."""
        raise NotImplementedError

    def pooled(self, x: jax.Array, rows: RowInfo) -> Any:
        """What `logits` reads, given the outputs' input of all tokens [batch, length, d_model] and
        their rows: the same, or one vector per row [batch, d_model], or one per side."""
        return x

    def loss(
        self,
        weights: PyTree,
        x: jax.Array,
        targets: jax.Array,
        loss_mask: jax.Array,
        z_loss: float,
        label_smoothing: float = 0.0,
    ) -> LossSums:
        """Sums over the tokens where loss_mask [batch, length] is set.

        Args:
            x: [batch, length, d_model].
            z_loss: the weight of log²Z.
            label_smoothing: see `cross_entropy`.
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

    bias: bool = Field(False, description="adds a bias to every logit")

    def own_flops(self, d_model: int, vocab_size: int) -> float:
        return 2.0 * _columns(d_model) * vocab_size if self.bias else 0.0


def _columns(d_model: int) -> int:
    """How many columns hold a bias: where fsdp divides `d_model` by a power of two, these as
    well."""
    return math.gcd(d_model, 128)


class Linear(Outputs):
    """logits = cap(W x), cap(y) = c · tanh(y / c) with a soft-cap c; W is the table when tied."""

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

    def weights(self, table: jax.Array | None) -> jax.Array:
        if not self.is_tied:
            return self.head
        assert table is not None
        return table.T

    def logits(self, weights: jax.Array, x: jax.Array, num_tokens: int | None = None) -> jax.Array:
        return logits_of(x, weights, self.logit_softcap, num_tokens)

    def loss(
        self,
        weights: jax.Array,
        x: jax.Array,
        targets: jax.Array,
        loss_mask: jax.Array,
        z_loss: float,
        label_smoothing: float = 0.0,
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
                label_smoothing=label_smoothing,
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


class Affine(Linear):
    """logits = cap(W x + b), or without b. A one and zeros stand behind x, and b and zeros below W,
    so that the product adds it."""

    config: LinearConfig

    def setup(self) -> None:
        super().setup()
        if self.config.bias:
            self.head_bias = self.param(
                "head_bias",
                nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)),
                (self.vocab_size,),
                jnp.float32,
            )

    def prepared(self, x: jax.Array) -> jax.Array:
        if not self.config.bias:
            return x
        one = jnp.zeros((*x.shape[:-1], _columns(x.shape[-1])), x.dtype).at[..., 0].set(1)
        return jnp.concatenate([x, one], axis=-1)

    def weights(self, table: jax.Array | None) -> jax.Array:
        matrix = super().weights(table)
        if not self.config.bias:
            return matrix
        bias = jnp.pad(self.head_bias[None], ((0, _columns(len(matrix)) - 1), (0, 0)))
        return jnp.concatenate([matrix, bias])


class TransformedConfig(LinearConfig):
    """A layer of its own below the product (BERT, arXiv:1810.04805)."""

    kind: Literal["transformed"] = "transformed"  # type: ignore[assignment]

    activation: Literal["gelu", "exact_gelu", "relu"] = Field(
        "exact_gelu", description="of that layer"
    )
    transform_bias: bool = Field(True, description="adds a bias in that layer")
    bias: bool = Field(True, description="adds a bias to every logit")

    def own_flops(self, d_model: int, vocab_size: int) -> float:
        return 2.0 * d_model**2 + super().own_flops(d_model, vocab_size)


class Transformed(Affine):
    """logits = cap(W norm(a(D x + d)) + b)."""

    config: TransformedConfig

    def setup(self) -> None:
        super().setup()
        d_model = self.dims.d_model
        self.transform = Projection(
            (d_model,),
            ("d_model", "d_out"),
            self.dims.init.matrix(d_model),
            self.config.transform_bias,
        )
        self.transform_norm = Norm(self.norm)

    def prepared(self, x: jax.Array) -> jax.Array:
        activation = ACTIVATIONS[self.config.activation]
        return super().prepared(self.transform_norm(activation(self.transform(x))))


class ClassesConfig(OutputsConfig):
    """One of several classes for each row."""

    kind: Literal["classes"] = "classes"
    can_be_tied = False
    of_rows = True

    pool: Literal["mean", "first"] = Field(
        "mean",
        description="what is classified: the mean of all tokens, or the first one, the class token",
    )


class Classes(Outputs):
    """logits = W x̄ + b, of the mean x̄ of a row's tokens or of its first one. W and b start at 0,
    where all classes are equally likely."""

    config: ClassesConfig

    def setup(self) -> None:
        zeros, shape = nn.initializers.zeros, (self.dims.d_model, self.vocab_size)
        self.head = self.param(
            "head", nn.with_logical_partitioning(zeros, ("d_model", "classes")), shape, jnp.float32
        )
        self.head_bias = self.param(
            "head_bias", nn.with_logical_partitioning(zeros, ("classes",)), shape[1:], jnp.float32
        )

    def weights(self, table: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return self.head, self.head_bias

    def pooled(self, x: jax.Array, rows: RowInfo) -> jax.Array:
        return pool(self.config.pool, x, rows.segment_ids)

    def logits(
        self, weights: tuple[jax.Array, jax.Array], x: jax.Array, num_tokens: int | None = None
    ) -> jax.Array:
        head, bias = weights
        return logits_of(x, head, self.logit_softcap, num_tokens, bias)


class RegressionConfig(OutputsConfig):
    """The numbers that stand at each place: pixels of patches, or log-mel frames."""

    kind: Literal["regression"] = "regression"
    can_be_tied = False
    of_numbers = True


class Regression(Outputs):
    """y = W x + b."""

    config: RegressionConfig

    def setup(self) -> None:
        shape = (self.dims.d_model, self.vocab_size)
        matrix = nn.with_logical_partitioning(
            self.dims.init.matrix(self.dims.d_model), ("d_model", "numbers")
        )
        self.regression = self.param("regression", matrix, shape, jnp.float32)
        self.regression_bias = self.param(
            "regression_bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("numbers",)),
            shape[1:],
            jnp.float32,
        )

    def weights(self, table: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return self.regression, self.regression_bias

    def logits(
        self, weights: tuple[jax.Array, jax.Array], x: jax.Array, num_tokens: int | None = None
    ) -> jax.Array:
        matrix, bias = weights
        return logits_of(x, matrix, self.logit_softcap, None, bias)


OUTPUTS |= {
    LinearConfig: Affine,
    TransformedConfig: Transformed,
    ClassesConfig: Classes,
    RegressionConfig: Regression,
}
