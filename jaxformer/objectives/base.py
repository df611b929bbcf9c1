"""What a training step minimizes."""

from typing import Any, ClassVar, NamedTuple

import jax

from jaxformer.batch import Batch
from jaxformer.model.accounting import flops_per_token
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.rows import LayerAux
from jaxformer.ops.cross_entropy import LossSums
from jaxformer.ops.token_losses import TokenScores
from jaxformer.schema.kinds import Kind

PyTree = Any

OBJECTIVES: list[type["ObjectiveConfig"]] = []  # filled in objectives/__init__.py


class Loss(NamedTuple):
    """Float32 sums over the tokens of a batch, to be added up over micro-batches.

    The gradient of a step is that of total / weight; `sums` are reported, each divided by weight,
    under the names of their metrics. `loss`, the cross-entropy in nats unless `loss_unit` says
    something else, is always one of them.
    `layers` are the loss and statistics of the model's layers, statistics [layers] each. `means`
    are reported as well, each a sum and the weight that it is divided by.
    """

    total: jax.Array
    weight: jax.Array
    sums: dict[str, jax.Array]
    layers: LayerAux
    means: dict[str, tuple[jax.Array, jax.Array]] | None = None


class Evaluated(NamedTuple):
    """What validation adds up over batches: sums over the tokens in the loss, what layers say of
    themselves, and `figures`, more sums, by the names under which their means are reported."""

    sums: LossSums
    layers: LayerAux
    figures: dict[str, jax.Array] = {}  # noqa: RUF012


def loss_of_sums(sums: LossSums, layers: LayerAux, z_loss: float) -> Loss:
    """Cross-entropy and z-loss per token, the latter reported if it has a weight."""
    reported = {"loss": sums.loss} | ({"z_loss": sums.z_loss} if z_loss else {})
    return Loss(sums.loss + sums.z_loss, sums.tokens, reported, layers)


class Reference(NamedTuple):
    """Another model that an objective compares with, and its weights, which are not trained."""

    model: LanguageModel
    params: PyTree


class ObjectiveConfig(Kind):
    """The options of an objective; `kind` names it."""

    registry = OBJECTIVES
    # The random keys that training draws from, `noise` if any.
    keys: ClassVar[tuple[str, ...]] = ()
    # Whether `model.further` is computed in training.
    trains_further: ClassVar[bool] = False
    # What `jaxformer list objectives` says: which models it can train, and how they are decoded.
    needs: ClassVar[str] = "any mixer"
    decoder: ClassVar[str] = "one token after another"

    # Whether p(token | all before it) is what the model gives in one causal pass, which decoding
    # one token after another and scores of continuations take it for.
    is_causal: ClassVar[bool] = True
    # Whether every prediction may depend on all tokens of its row.
    sees_whole_rows: ClassVar[bool] = False
    # Of models that continue no text, the command that uses them, without `jaxformer`.
    instead: ClassVar[str | None] = None
    # The figure by which the arena compares models.
    figure: ClassVar[str] = "bits_per_byte"
    # Whether it is about rows, not about tokens.
    of_rows: ClassVar[bool] = False
    # Whether the loss of a row depends on the others of its batch.
    compares_rows: ClassVar[bool] = False
    # Whether it predicts the numbers that stand at places, not what a batch has for targets.
    of_numbers: ClassVar[bool] = False
    # What a loss is, in words.
    loss_unit: ClassVar[str] = "nats per token"
    # The orders of tokens, `model.order`, that it can train.
    orders: ClassVar[tuple[str, ...]] = ("causal",)
    # Whether training gives `rows.order`, which attention's kernels do not support.
    gives_order: ClassVar[bool] = False
    # Tokens that the layers read for each token of a batch.
    tokens_read: ClassVar[float] = 1.0

    @property
    def shortest_row(self) -> int:
        """The fewest tokens that a row must have."""
        return 1

    @property
    def is_bound(self) -> bool:
        """Whether validation reports a bound, which the loss is at most."""
        return False

    def check(self, model: ModelConfig) -> None:
        """Check that a model can be trained so.

        Raises:
            ValueError: saying what stands in the way, and what would not.
        """

    @property
    def reference(self) -> str | None:
        """The run whose model the objective compares with, if it does."""
        return None

    def flops(self, model: LanguageModel, length: int) -> float:
        """FLOPs per token of a forward pass in training, in rows of `length` tokens."""
        return flops_per_token(model, length, self.tokens_read)

    def loss(
        self,
        model: LanguageModel,
        params: PyTree,
        batch: Batch,
        *,
        z_loss: float,
        rngs: dict[str, jax.Array],
        reference: Reference | None,
    ) -> Loss:
        """The loss of a batch.

        Args:
            params: all weights of `model`.
            z_loss: the weight of log²Z.
            rngs: keys, such as `dropout`.
            reference: the model that `self.reference` names.
        """
        raise NotImplementedError

    def evaluate(self, model: LanguageModel, params: PyTree, batch: Batch) -> Evaluated:
        """What validation reports, the same for a batch whenever it is asked."""
        return Evaluated(*model.apply({"params": params}, *batch, method="loss"))

    def scores(
        self, model: LanguageModel, params: PyTree, batch: Batch
    ) -> tuple[TokenScores, LayerAux]:
        """The scores of every target, whose sum `evaluate` has, and what the layers say."""
        return model.apply({"params": params}, *batch, method="scores")
