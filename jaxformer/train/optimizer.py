"""Optimizers from Optax, and which weights each rule is for."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec
from optax import contrib

from jaxformer.config import AdafactorConfig, AdamWConfig, LionConfig, MuonConfig, SGDConfig
from jaxformer.train.default_types import without_x64

PyTree = Any
OptimizerConfig = AdamWConfig | LionConfig | AdafactorConfig | MuonConfig | SGDConfig

# An index along these picks one of several weights: a convolution's tap, a state's rates, a gate, a
# bucket's biases, a residual stream's weights.
STACKING_AXES = (
    "layers",
    "experts",
    "width",
    "state",
    "gates",
    "branch",
    "buckets",
    "stream",
    "into_stream",
)
# Axes that together are one side of a matrix.
ONE_SIDE = {
    ("heads", "head_dim"),
    ("kv_heads", "head_dim"),
    ("group", "state"),
    ("steps", "heads"),
    ("down", "across"),
    ("across", "pixel"),
}
RATE = "learning_rate"  # how the keys of learning rates end
TABLE_AXES = ("vocab", "length")  # embeddings, the head, learned positions


def make_optimizer(config: OptimizerConfig, axes: PyTree) -> optax.GradientTransformation:
    """Turn gradients into updates at the full learning rate; the step applies the schedule.

    Weight decay is decoupled (it is multiplied by the learning rate, not by the gradient's scale)
    and applies to matrices alone, not to norms or biases, whatever layers they are stacked over.

    - `adamw`: Loshchilov and Hutter, 2019, arXiv:1711.05101.
    - `lion`: Chen et al., 2023, arXiv:2302.06675.
    - `adafactor`: Shazeer and Stern, 2018, arXiv:1804.04235, without momentum; updates are relative
      to the weights' own size. Root mean squares are over a whole leaf, stacked layers together.
    - `muon`: see `_muon`.
    - `sgd`: with heavy-ball momentum.

    Args:
        axes: the tree of logical axis names, PartitionSpec leaves (`rules.logical_axes`).
    """
    rule = optax.with_extra_args_support(_rule(config, axes))
    return optax.GradientTransformationExtraArgs(without_x64(rule.init), without_x64(rule.update))


def _rule(config: OptimizerConfig, axes: PyTree) -> optax.GradientTransformation:
    if isinstance(config, MuonConfig):
        return _muon(config, axes)
    match config:
        case AdamWConfig():
            direction = [optax.scale_by_adam(config.b1, config.b2, config.eps)]
        case LionConfig():
            direction = [optax.scale_by_lion(config.b1, config.b2)]
        case AdafactorConfig():
            direction = [
                optax.scale_by_factored_rms(decay_rate=config.decay_rate),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            ]
        case SGDConfig():
            direction = [optax.trace(config.momentum)]
    return optax.chain(*direction, *_descend(config, "learning_rate", axes))


def rates_of(config: OptimizerConfig) -> dict[str, float]:
    """The optimizer's learning rates, by their keys."""
    return {key: value for key, value in config.model_dump().items() if key.endswith(RATE)}


def _descend(
    config: OptimizerConfig, rate: str, axes: PyTree
) -> Sequence[optax.GradientTransformation]:
    mask = decay_mask(axes)

    def matching_mask(params: PyTree) -> PyTree:
        return _masked_as(params, mask)

    return optax.add_decayed_weights(config.weight_decay, matching_mask), _at_rate(config, rate)


def _at_rate(config: OptimizerConfig, key: str) -> optax.GradientTransformationExtraArgs:
    """−rate · updates; `rates` given to `update` take precedence over the configuration's."""
    own = rates_of(config)[key]

    def update(
        updates: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        rates: Mapping[str, jax.Array] | None = None,
        **others: Any,
    ) -> tuple[PyTree, PyTree]:
        rate = rates[key] if rates else own
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _muon(config: MuonConfig, axes: PyTree) -> optax.GradientTransformation:
    """Momentum, orthogonalised layer by layer; AdamW for embeddings, head, norms and biases.

    With M the Nesterov momentum of one layer's weight as a matrix [inputs, outputs] (heads and
    head_dim flattened into one side) and UΣVᵀ its singular value decomposition, the update is

        −η √max(1, outputs / inputs) · UVᵀ

    with UVᵀ approximated by five Newton-Schulz iterations (Jordan et al., 2024,
    https://kellerjordan.github.io/posts/muon/; its rows / cols is outputs / inputs here). Layers
    stacked along `layers` are orthogonalised each on its own, as one batched product.
    """
    muon_dims = jax.tree.map(_muon_dimensions, axes, is_leaf=_is_spec)
    labels = jax.tree.map(
        lambda dims: "adamw" if dims is None else "muon", muon_dims, is_leaf=_is_dims
    )
    dims_of_muon = jax.tree.map(
        lambda dims: optax.MaskedNode() if dims is None else dims, muon_dims, is_leaf=_is_dims
    )
    muon = (
        contrib.scale_by_muon(
            beta=config.momentum, weight_dimension_numbers=lambda updates: dims_of_muon
        ),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_by_shape, updates, dims_of_muon)),
    )
    adamw = optax.scale_by_adam(config.b1, config.b2, config.eps)
    return optax.partition(
        {
            "muon": optax.chain(*muon, *_descend(config, "learning_rate", axes)),
            "adamw": optax.chain(adamw, *_descend(config, "adamw_learning_rate", axes)),
        },
        labels,
    )


def _scale_by_shape(update: jax.Array, dims: contrib.MuonDimensionNumbers) -> jax.Array:
    inputs = math.prod(update.shape[axis] for axis in dims.reduction_axis)
    outputs = math.prod(update.shape[axis] for axis in dims.output_axis)
    return math.sqrt(max(1.0, outputs / inputs)) * update


def _muon_dimensions(spec: PartitionSpec) -> contrib.MuonDimensionNumbers | None:
    sides = matrix_sides(spec)
    if sides is None or any(name in TABLE_AXES for name in spec):
        return None
    return contrib.MuonDimensionNumbers(reduction_axis=sides[0], output_axis=sides[1])


def decay_mask(axes: PyTree) -> PyTree:
    """True for the parameters that are matrices, axes of stacked layers left out."""
    return jax.tree.map(lambda spec: matrix_sides(spec) is not None, axes, is_leaf=_is_spec)


def matrix_sides(names: Iterable[str | None]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Which dimensions are a weight matrix's inputs and outputs; None if it is not a matrix.

    A stacking axis is not a side. `heads` and `head_dim` together are one, so a bias
    [heads, head_dim] is a vector and a kernel [d_model, heads, head_dim] a matrix; in a
    block-diagonal kernel [heads, head_input, head_dim] every head is a matrix of its own.

    Raises:
        ValueError: more than two sides.
    """
    names = tuple(names)
    sides: list[tuple[int, ...]] = []
    for dimension, name in enumerate(names):
        before = names[dimension - 1] if dimension else None
        if sides and (before, name) in ONE_SIDE:
            sides[-1] = (*sides[-1], dimension)
        elif name == "head_input":  # of a head's block; `heads` stacks these
            sides[-1] = (dimension,)
        elif name not in STACKING_AXES:
            sides.append((dimension,))
    if len(sides) > 2:
        raise ValueError(
            f"a parameter with axes {names} has {len(sides)} sides, a matrix has two; name "
            f"stacked axes one of {STACKING_AXES}"
        )
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _masked_as(params: PyTree, tree: PyTree) -> PyTree:
    """`tree` with the holes (optax.MaskedNode) that `params` has."""
    return jax.tree.map(
        lambda leaf, value: leaf if isinstance(leaf, optax.MaskedNode) else value,
        params,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def _is_dims(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, contrib.MuonDimensionNumbers)
