"""The train step: pure, jitted, donated, `(state, batch) -> (state, metrics)`."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxformer.batch import Batch
from jaxformer.model.config import ModelConfig
from jaxformer.model.parameter_paths import join
from jaxformer.model.rows import EXPERT_LOAD
from jaxformer.objectives import Loss
from jaxformer.train import balance, statistics
from jaxformer.train.schedule import Schedule

PyTree = Any
Metrics = dict[str, jax.Array]

KEYS = ("dropout", "depth", "noise")  # random keys that a loss may draw from


# (all weights, those of the reference, batch, keys such as `dropout`) → loss
LossOf = Callable[[PyTree, PyTree, Batch, dict[str, jax.Array]], Loss]


class TrainState(struct.PyTreeNode):
    """All that a run carries from step to step; parameters and averages are float32.

    The weights are three trees without a common path: `params` are trained, and have an optimizer
    state and an average; `frozen` and `base` stay as they are, but for the biases that balance
    experts, which are in `frozen`. In a run with adapters, `base` is what they adapt. `reference`
    are the weights of another model that the objective compares with. Checkpoints contain neither
    `base` nor `reference`.
    """

    step: jax.Array  # int32: updates tried, skipped ones included
    params: PyTree
    opt_state: PyTree
    ema: PyTree | None  # the moving average of `params`, or None
    nonfinite: jax.Array  # int32: updates skipped in a row, up to now
    frozen: PyTree = struct.field(default_factory=dict)
    base: PyTree = struct.field(default_factory=dict)
    reference: PyTree = struct.field(default_factory=dict)
    # Learning rates by their keys, in place of the optimizer's own: one program serves a sweep.
    rates: dict[str, jax.Array] = struct.field(default_factory=dict)


class StepOptions(NamedTuple):
    """What the step takes from the configuration."""

    learning_rate: float
    accumulation: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    seed: int = 0
    keys: Collection[str] = ()  # of KEYS, those that the loss draws from
    model: ModelConfig | None = None  # what figures of layers, and biases of routers, are by
    moved_biases: Collection[str] = ()  # paths in `frozen`
    measures_layers: bool = False


def init_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    ema_decay: float | None,
    frozen: PyTree | None = None,
    base: PyTree | None = None,
) -> TrainState:
    """The state before the first step; the average starts at the parameters."""
    zero = jnp.zeros((), jnp.int32)
    ema = None if ema_decay is None else jax.tree.map(jnp.copy, params)
    return TrainState(zero, params, optimizer.init(params), ema, zero, frozen or {}, base or {})


def make_train_step(
    loss_of: LossOf,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    options: StepOptions,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One update, to be jitted with the state donated.

    With G the gradient of the batch's total loss and of what layers add to it, N the loss's weight
    (the number of tokens in it), and θ the trained weights alone,

        g = G / N,   g ← g · min(1, clip_norm / ‖g‖),   θ ← θ + factor(step) · optimizer(g, θ)

    whatever the accumulation and sharding: micro-batches add to G and N, and the division is made
    once. When the loss or ‖g‖ is not finite, parameters, optimizer state, average and biases of
    routers stay as they were; the step still counts, and `nonfinite` counts how many such steps
    there were in a row. Keys are pure functions of `options.seed`, the step and the micro-batch.

    Metrics (float32 scalars): the loss's sums divided by N, `loss` in nats among them, and its
    means; `grad_norm` = ‖g‖ before clipping, `learning_rate`, `tokens` = N, `nonfinite`;
    `layer_loss` if layers have one, and `layers/NAME` for each of their statistics, per token,
    averaged over the layers that have it, with `balance.figures` in place of `expert_load`;
    `inputs/NAME` for those of the inputs. With `measures_layers` also `layers`: the mean square
    `activation` of each layer, its own statistics per token, and sums of squares per layer and
    outside the layers [layers + 1]: `gradient` (g before clipping), `update` and `weight` (θ).
    """

    descend = optax.with_extra_args_support(optimizer).update

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rngs = {}
        if options.keys:
            key = jax.random.fold_in(jax.random.key(options.seed), state.step)
            every = {name: jax.random.fold_in(key, number) for number, name in enumerate(KEYS)}
            rngs = {name: every[name] for name in options.keys}
        total, gradients = _sum_gradients(loss_of, state, batch, options.accumulation, rngs)
        tokens = jnp.maximum(total.weight, 1.0)
        means = {name: value / tokens for name, value in total.sums.items()}
        for name, (value, weight) in (total.means or {}).items():
            means[name] = value / weight  # not a number where nothing is predicted
        if total.layers.loss is not None:
            means["layer_loss"] = total.layers.loss / tokens
        real = jnp.maximum(jnp.sum(batch.segment_ids != 0), 1)
        stats = {name: x / real for name, x in total.layers.stats.items() if name != "activation"}
        load = stats.pop(EXPERT_LOAD, None)
        said = {name: values for name, values in stats.items() if not name.startswith("inputs/")}
        if load is not None:
            said |= balance.figures(load)
        means |= {f"layers/{name}": jnp.nanmean(values) for name, values in said.items()}
        means |= {name: value for name, value in stats.items() if name not in said}
        with jax.named_scope("optimizer"):
            grad_norm = optax.tree.norm(gradients) / tokens
            finite = jnp.isfinite(means["loss"]) & jnp.isfinite(grad_norm)
            scale = 1.0 / tokens
            if options.clip_norm is not None:
                scale *= options.clip_norm / jnp.maximum(grad_norm, options.clip_norm)
            gradients = jax.tree.map(lambda g: g * scale, gradients)

        factor = schedule(state.step)

        def changes(updates: PyTree) -> PyTree:
            """What is measured of an update."""
            if options.model is None or not options.measures_layers:
                return ()
            return factor**2 * statistics.squares(updates, options.model)

        def update() -> tuple[PyTree, PyTree, PyTree, PyTree]:
            updates, opt_state = descend(
                gradients, state.opt_state, state.params, rates=state.rates
            )
            params = jax.tree.map(lambda p, u: p + factor * u, state.params, updates)
            ema = _moving_average(state.ema, params, options.ema_decay)
            return params, opt_state, ema, changes(updates)

        def skip() -> tuple[PyTree, PyTree, PyTree, PyTree]:
            nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(changes, state.params))
            return state.params, state.opt_state, state.ema, nothing

        # A branch: a choice between two results would keep the old ones in memory beside the new.
        with jax.named_scope("optimizer"):
            params, opt_state, ema, changed = jax.lax.cond(finite, update, skip)
        nonfinite = jnp.where(finite, 0, state.nonfinite + 1)
        frozen = state.frozen
        if options.moved_biases:
            assert load is not None and options.model is not None
            moved = options.moved_biases
            frozen = balance.move_biases(frozen, moved, load, options.model, finite)
        metrics = {
            **means,
            "grad_norm": grad_norm,
            "learning_rate": state.rates.get("learning_rate", options.learning_rate) * factor,
            "tokens": total.weight,
            "nonfinite": nonfinite,
        }
        if (model := options.model) is not None and options.measures_layers:
            if load is not None:
                said[EXPERT_LOAD] = load
            metrics["layers"] = said | {
                "activation": total.layers.stats["activation"] / real,
                "gradient": statistics.squares(gradients, model) / (scale * tokens) ** 2,
                "update": changed,
                "weight": statistics.squares(params, model),
            }
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=ema,
            nonfinite=nonfinite,
            frozen=frozen,
        )
        return state, metrics

    return train_step


def _sum_gradients(
    loss_of: LossOf,
    state: TrainState,
    batch: Batch,
    accumulation: int,
    rngs: dict[str, jax.Array],
) -> tuple[Loss, PyTree]:
    def objective(
        params: PyTree, rows: Batch, rngs: dict[str, jax.Array]
    ) -> tuple[jax.Array, Loss]:
        with jax.named_scope("loss"):
            loss = loss_of(join(state.base, state.frozen, params), state.reference, rows, rngs)
        of_layers = loss.layers.loss
        return loss.total if of_layers is None else loss.total + of_layers, loss

    gradient = jax.grad(objective, has_aux=True)
    if accumulation == 1:
        gradients, loss = gradient(state.params, batch, rngs)
        return loss, gradients

    def add_micro_batch(
        total: tuple[PyTree, Loss], part: tuple
    ) -> tuple[tuple[PyTree, Loss], None]:
        return jax.tree.map(jnp.add, total, gradient(state.params, *part)), None

    micro_batches = jax.tree.map(lambda x: _split_rows(x, accumulation), batch)
    keys = jax.tree.map(lambda key: jax.random.split(key, accumulation), rngs)
    parts = (micro_batches, keys)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), parts)
    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, state.params, *one)
    )
    (gradients, loss), _ = jax.lax.scan(add_micro_batch, zero, parts)
    return loss, gradients


def _split_rows(x: jax.Array, parts: int) -> jax.Array:
    """[rows, ...] to [parts, rows / parts, ...], every part taking rows from every data shard."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _moving_average(average: PyTree | None, params: PyTree, decay: float | None) -> PyTree | None:
    if decay is None:
        return None
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
