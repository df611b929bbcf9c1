"""What a training step minimizes."""

from typing import Any, ClassVar, NamedTuple

import jax

from jaxformer.batch import Batch
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
    under the names of their metrics. `loss`, the cross-entropy in nats, is always one of them.
    `layers` are the loss and statistics of the model's layers, statistics [layers] each.
    """

    total: jax.Array
    weight: jax.Array
    sums: dict[str, jax.Array]
    layers: LayerAux


class Reference(NamedTuple):
    """Another model that an objective compares with, and its weights, which are not trained."""

    model: LanguageModel
    params: PyTree


class ObjectiveConfig(Kind):
    """The options of an objective; `kind` names it."""

    registry = OBJECTIVES
    # The random keys that training draws from, `noise` if any.
    keys: ClassVar[tuple[str, ...]] = ()

    def check(self, model: ModelConfig) -> None:
        """Check that a model can be trained so.

        Raises:
            ValueError: saying what stands in the way, and what would not.
        """

    @property
    def reference(self) -> str | None:
        """The run whose model the objective compares with, if it does."""
        return None

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

    def evaluate(self, model: LanguageModel, params: PyTree, batch: Batch) -> LossSums:
        """What validation reports: the same for a batch whenever it is asked."""
        sums, _ = model.apply({"params": params}, *batch, method="loss")
        return sums

    def scores(self, model: LanguageModel, params: PyTree, batch: Batch) -> TokenScores:
        """The scores of every target, whose sum `evaluate` has."""
        return model.apply({"params": params}, *batch, method="scores")
