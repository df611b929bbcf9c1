"""What objectives share that hide places of pictures or sound, and predict what stands there."""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import PositiveInt

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import InputsConfig, Masked
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.rows import LayerAux, RowInfo
from jaxformer.objectives.base import Evaluated, Loss, ObjectiveConfig, PyTree, Reference
from jaxformer.objectives.denoising import noise_of_batch, noise_of_rows
from jaxformer.objectives.requirements import check_last_layer
from jaxformer.ops.cross_entropy import LossSums


class MaskedPlacesConfig(ObjectiveConfig):
    """The mean, over hidden places, of the mean of (prediction − number)² over the numbers that
    stand at a place, standardised.

    Of the blocks of places of every row, the share `rate` is hidden, rounded, and at least one;
    which ones is drawn: in training from the step's key, in validation from each row itself, so
    that a row has the same loss in every evaluation. What fills up a row is never hidden.
    """

    decoder = "none: another run, with init.from"
    instead = "train CONFIG init.from=RUN 'init.partial=[head*, regression*]'"
    loss_unit = "squared error per hidden place"
    keys: ClassVar[tuple[str, ...]] = ("noise",)
    is_causal = False
    of_numbers = True
    sees_whole_rows = True
    orders = ("full",)
    reads: ClassVar[type[InputsConfig]]

    rate: float
    block: PositiveInt
    eval_draws: PositiveInt

    def check(self, model: ModelConfig) -> None:
        check_last_layer(self.kind, model)
        inputs, wanted = model.inputs, self.reads.model_fields["kind"].default
        if not isinstance(inputs, self.reads):
            raise ValueError(
                f"train.objective is {self.kind}, but model.inputs is {inputs.kind}; allowed: "
                f"{wanted}"
            )
        if not inputs.mask:
            raise ValueError(
                f"train.objective is {self.kind}, which hides {wanted}, but model.inputs.mask is "
                f"false; give model.inputs.mask: true, which learns an embedding for them"
            )
        if not model.outputs.of_numbers:
            raise ValueError(
                f"train.objective is {self.kind}, which predicts numbers, but model.outputs is "
                f"{model.outputs.kind}; give model.outputs={{kind: regression}}"
            )

    def blocks(self, inputs: InputsConfig, length: int) -> np.ndarray:
        """The number of each place's block, from 0 on, int [length]."""
        raise NotImplementedError

    def hidden(self, model: LanguageModel, batch: Batch, coins: jax.Array) -> jax.Array:
        """Which places are hidden, [rows, length], by numbers in [0, 1) of the same shape."""
        real = jnp.asarray(batch.segment_ids != 0)
        of_place = self.blocks(model.config.inputs, real.shape[1])
        count = int(of_place.max()) + 1
        there = jnp.zeros((len(real), count), bool).at[:, of_place].max(real)
        drawn = jnp.where(there, coins[:, :count], 2.0)  # the others come last
        rank = jnp.argsort(jnp.argsort(drawn, axis=1), axis=1)
        wanted = jnp.maximum(jnp.round(self.rate * jnp.sum(there, axis=1)), 1)
        return (rank < wanted[:, None])[:, of_place] & real

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
        hidden = self.hidden(model, batch, noise_of_batch(batch, rngs["noise"]).coins)
        errors, _, layers = _errors(model, params, batch, hidden, rngs)
        weight = jnp.sum(hidden, dtype=jnp.float32)
        return Loss(errors, weight, {"loss": errors}, layers)

    def evaluate(self, model: LanguageModel, params: PyTree, batch: Batch) -> Evaluated:
        """Sums over all draws; `variance` is the loss of a model that always predicts 0, which is
        the mean of what stands at a place."""

        def of_draw(draw: jax.Array) -> Evaluated:
            hidden = self.hidden(model, batch, noise_of_rows(batch, draw, self.eval_draws).coins)
            errors, squares, layers = _errors(model, params, batch, hidden)
            count = jnp.sum(hidden, dtype=jnp.float32)
            return Evaluated(LossSums(errors, jnp.zeros(()), count), layers, {"variance": squares})

        found = jax.lax.map(of_draw, jnp.arange(self.eval_draws))
        layers = jax.tree.map(partial(jnp.mean, axis=0), found.layers)
        sums, figures = jax.tree.map(partial(jnp.sum, axis=0), (found.sums, found.figures))
        return Evaluated(sums, layers, figures)


def _errors(
    model: LanguageModel,
    params: PyTree,
    batch: Batch,
    hidden: jax.Array,
    rngs: dict[str, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, LayerAux]:
    """Over hidden places, the sums of the mean squared error and of the mean square of what stands
    there, and what layers say."""
    rows = (jnp.asarray(batch.positions), jnp.asarray(batch.segment_ids))
    predicted, layers = model.apply(
        {"params": params}, Masked(batch.inputs, hidden), *rows, method="regress", rngs=rngs
    )
    contents = model.input_part(parent=None).contents(batch.inputs, RowInfo(*rows))

    def total(squares: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(hidden, jnp.mean(squares, axis=-1), 0))

    return total((predicted - contents) ** 2), total(contents**2), layers
