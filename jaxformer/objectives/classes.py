"""Classification: a class for each row, with the regularizers that image models train with.

Label smoothing: Szegedy et al., 2015, arXiv:1512.00567. Mixup: Zhang et al., 2017,
arXiv:1710.09412. CutMix: Yun et al., 2019, arXiv:1905.04899.
"""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field, NonNegativeFloat

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.inputs import RecordingsConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.rows import LayerAux
from jaxformer.objectives.base import Evaluated, Loss, ObjectiveConfig, PyTree, Reference
from jaxformer.objectives.requirements import check_last_layer
from jaxformer.ops.cross_entropy import LossSums

TOP = 5  # `top5_accuracy`


class Mixed(NamedTuple):
    """Rows of which each has a part of another one."""

    inputs: jax.Array
    other: jax.Array  # [rows], the class of that part
    share: jax.Array  # [rows], how much of a row is its own


class ClassesConfig(ObjectiveConfig):
    """Σ −log p(class | row) over the rows. With smoothing ε and a share 1 − λ of another class,

        (1 − ε) (λ · CE(own) + (1 − λ) · CE(other)) + ε · the mean of CE over all classes

    `accuracy` counts the share of the likeliest class.
    """

    kind: Literal["classes"] = "classes"
    needs = "model.outputs classes"
    decoder = "none: jaxformer predict"
    instead = "predict RUN FILE"
    figure = "accuracy"
    is_causal = False
    of_rows = True
    sees_whole_rows = True
    orders = ("causal", "full")

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="ε, the share of a target that is spread over all classes"
    )
    mixup: NonNegativeFloat = Field(
        0.0,
        description="α: blends every picture with another one, with a share from Beta(α, α); "
        "0 for none",
    )
    cutmix: NonNegativeFloat = Field(
        0.0,
        description="α: puts a box of another picture into every picture, of an area from "
        "Beta(α, α); 0 for none. With mixup as well, each picture gets one of them",
    )

    @property
    def keys(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("noise",) if self.mixup or self.cutmix else ()

    def check(self, model: ModelConfig) -> None:
        check_last_layer(self.kind, model)
        if not model.outputs.of_rows:
            raise ValueError(
                f"train.objective is classes, but model.outputs {model.outputs.kind} gives every "
                f"token an output; give model.outputs={{kind: classes}}"
            )

        if self.keys and isinstance(model.inputs, RecordingsConfig):
            key = "mixup" if self.mixup else "cutmix"
            raise ValueError(
                f"train.objective has {key}, which blends pictures, but "
                f"model.inputs {model.inputs.kind} reads recordings; leave it out"
            )

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
        own, mask = jnp.asarray(batch.targets)[:, 0], batch.loss_mask[:, 0]
        mixed = Mixed(jnp.asarray(batch.inputs), own, jnp.ones(own.shape, jnp.float32))
        if self.keys:
            mixed = self._mixed(mixed, rngs["noise"])
        rows = (mixed.inputs, batch.positions, batch.segment_ids)
        logits, layers = model.apply({"params": params}, *rows, method="classify", rngs=rngs)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        log_probs = logits - log_z[:, None]

        def of_both(values: jax.Array) -> jax.Array:
            """The mean of the values of every row's two classes, weighted by their shares."""
            share = mixed.share
            return share * _at(values, own) + (1 - share) * _at(values, mixed.other)

        cross = -of_both(log_probs)
        total = cross
        if self.label_smoothing:
            finite = jnp.where(jnp.isfinite(log_probs), log_probs, 0)
            spread = -jnp.sum(finite, axis=-1) / (model.num_tokens or model.vocab_size)
            total = (1 - self.label_smoothing) * cross + self.label_smoothing * spread
        if z_loss:
            total += z_loss * log_z**2
        likeliest = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
        sums = {"loss": cross, "accuracy": of_both(likeliest)}
        if z_loss:
            sums["z_loss"] = z_loss * log_z**2
        reported = {name: jnp.sum(value * mask) for name, value in sums.items()}
        weight = jnp.sum(mask, dtype=jnp.float32)
        return Loss(jnp.sum(total * mask), weight, reported, layers)

    def _mixed(self, rows: Mixed, key: jax.Array) -> Mixed:
        """Every row with a part of the row before it in the batch."""
        of_mixup, of_cutmix, of_choice = jax.random.split(key, 3)
        inputs = rows.inputs.astype(jnp.float32)
        other = jnp.roll(inputs, 1, axis=0)
        classes = jnp.roll(rows.other, 1)
        count = len(inputs)

        def blended() -> tuple[jax.Array, jax.Array]:
            share = jax.random.beta(of_mixup, self.mixup, self.mixup, (count,), jnp.float32)
            return _over_pixels(share), share

        def boxed() -> tuple[jax.Array, jax.Array]:
            outside = outside_box(of_cutmix, self.cutmix, *inputs.shape[:3])
            return outside[..., None], jnp.mean(outside, axis=(1, 2))

        if not self.cutmix:
            weight, share = blended()
        elif not self.mixup:
            weight, share = boxed()
        else:
            blends = jax.random.bernoulli(of_choice, 0.5, (count,))
            (weight, share), (outside, rest) = blended(), boxed()
            weight = jnp.where(_over_pixels(blends), weight, outside)
            share = jnp.where(blends, share, rest)
        return Mixed(weight * inputs + (1 - weight) * other, classes, share)

    def evaluate(self, model: LanguageModel, params: PyTree, batch: Batch) -> Evaluated:
        rows = (batch.inputs, batch.positions, batch.segment_ids)
        logits, layers = model.apply({"params": params}, *rows, method="classify")
        return of_logits(logits, batch, layers)


def of_logits(logits: jax.Array, batch: Batch, layers: LayerAux) -> Evaluated:
    """The sums over the rows of a batch, given their logits [rows, classes]."""
    own, mask = jnp.asarray(batch.targets)[:, 0], batch.loss_mask[:, 0]
    rank = rank_of(own, logits)
    cross = jax.nn.logsumexp(logits, axis=-1) - _at(logits, own)
    found = {"accuracy": rank < 1, "top5_accuracy": rank < TOP}
    figures = {name: jnp.sum(right & mask, dtype=jnp.float32) for name, right in found.items()}
    count = jnp.sum(mask, dtype=jnp.float32)
    return Evaluated(LossSums(jnp.sum(cross * mask), jnp.zeros(()), count), layers, figures)


def rank_of(classes: jax.Array, logits: jax.Array) -> jax.Array:
    """How many classes are likelier than that of every row, given logits [rows, classes]; of
    equally likely ones the first comes first, as in argmax."""
    own = _at(logits, classes)[:, None]
    earlier = jnp.arange(logits.shape[-1]) < classes[:, None]
    return jnp.sum((logits > own) | ((logits == own) & earlier), axis=-1)


def outside_box(key: jax.Array, alpha: float, rows: int, height: int, width: int) -> jax.Array:
    """[rows, height, width]: 0 in a box of each row, whose area is a share from Beta(α, α) of the
    picture, less what lies beyond its edges; 1 outside."""
    of_share, of_centre = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(of_share, alpha, alpha, (rows, 1), jnp.float32))
    centres = jax.random.uniform(of_centre, (2, rows, 1))

    def inside(size: int, centre: jax.Array) -> jax.Array:
        places, half = jnp.arange(size) + 0.5, side * size / 2
        return jnp.abs(places - centre * size) < half

    box = inside(height, centres[0])[:, :, None] & inside(width, centres[1])[:, None, :]
    return 1.0 - box


def _at(values: jax.Array, classes: jax.Array) -> jax.Array:
    """values [rows, classes] at one class per row."""
    return jnp.take_along_axis(values, classes[:, None], axis=-1)[:, 0]


def _over_pixels(x: jax.Array) -> jax.Array:
    return x[:, None, None, None]
