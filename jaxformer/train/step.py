"""The train step: pure, jitted, donated, `(state, batch) -> (state, metrics)`."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxformer.data.batch import Batch
from jaxformer.model.parameter_paths import join
from jaxformer.train.schedule import Schedule

PyTree = Any
Metrics = dict[str, jax.Array]


class Sums(Protocol):
    """Sums over a batch's loss tokens, float32 scalars: nats, the weighted z-loss, the count."""

    loss: jax.Array
    z_loss: jax.Array
    tokens: jax.Array


class LossSums(Protocol):
    """The sums of a batch for all weights; `rngs` are keys, such as `dropout`."""

    def __call__(self, params: PyTree, batch: Batch, **rngs: jax.Array) -> Sums: ...


class TrainState(struct.PyTreeNode):
    """All that a run carries from step to step; parameters and averages are float32.

    The weights are three trees of other paths each: `params` are trained, and have an optimizer
    state and an average; `frozen` and `base` stay as they are. Of a run with adapters `base` is
    what they adapt, which no checkpoint of it repeats.
    """

    step: jax.Array  # int32: updates tried, skipped ones included
    params: PyTree
    opt_state: PyTree
    ema: PyTree | None  # the moving average of `params`, or None
    nonfinite: jax.Array  # int32: updates skipped in a row, up to now
    frozen: PyTree = struct.field(default_factory=dict)
    base: PyTree = struct.field(default_factory=dict)
    # Learning rates by their keys, in place of the optimizer's own: one program serves a sweep.
    rates: dict[str, jax.Array] = struct.field(default_factory=dict)


class StepOptions(NamedTuple):
    """What the step takes from the configuration."""

    learning_rate: float
    accumulation: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None
    z_loss: bool = False  # whether to report it
    dropout_seed: int | None = None  # None: the loss takes no key


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
    loss_sums: LossSums,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    options: StepOptions,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One update, to be jitted with the state donated.

    With G = Σ over all loss tokens of the batch of ∇(loss + z-loss), and N their count, θ being
    the trained weights alone,

        g = G / N,   g ← g · min(1, clip_norm / ‖g‖),   θ ← θ + factor(step) · optimizer(g, θ)

    whatever the accumulation and sharding: micro-batches add to G and N, and the division is made
    once. When the loss or ‖g‖ is not finite, parameters, optimizer state and average stay as they
    were; the step counts on, and `nonfinite` counts how many such steps there were in a row.
    Keys are pure functions of `options.dropout_seed`, the step and the micro-batch.

    Metrics (float32 scalars): `loss` in nats per loss token, `grad_norm` = ‖g‖ before clipping,
    `learning_rate`, `tokens` = N, `nonfinite`, and `z_loss` per token if asked for.
    """

    descend = optax.with_extra_args_support(optimizer).update

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rngs = {}
        if options.dropout_seed is not None:
            key = jax.random.key(options.dropout_seed)
            rngs["dropout"] = jax.random.fold_in(key, state.step)
        sums, gradients = _sum_gradients(loss_sums, state, batch, options.accumulation, rngs)
        tokens = jnp.maximum(sums.tokens, 1.0)
        loss = sums.loss / tokens
        grad_norm = optax.tree.norm(gradients) / tokens
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        scale = 1.0 / tokens
        if options.clip_norm is not None:
            scale *= options.clip_norm / jnp.maximum(grad_norm, options.clip_norm)
        gradients = jax.tree.map(lambda g: g * scale, gradients)

        factor = schedule(state.step)

        def update() -> tuple[PyTree, PyTree, PyTree]:
            updates, opt_state = descend(
                gradients, state.opt_state, state.params, rates=state.rates
            )
            params = jax.tree.map(lambda p, u: p + factor * u, state.params, updates)
            return params, opt_state, _moving_average(state.ema, params, options.ema_decay)

        # A branch, not a choice between two results, which would keep the old ones beside the new.
        params, opt_state, ema = jax.lax.cond(
            finite, update, lambda: (state.params, state.opt_state, state.ema)
        )
        nonfinite = jnp.where(finite, 0, state.nonfinite + 1)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": state.rates.get("learning_rate", options.learning_rate) * factor,
            "tokens": sums.tokens,
            "nonfinite": nonfinite,
        }
        if options.z_loss:
            metrics["z_loss"] = sums.z_loss / tokens
        state = state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, ema=ema, nonfinite=nonfinite
        )
        return state, metrics

    return train_step


def _sum_gradients(
    loss_sums: LossSums,
    state: TrainState,
    batch: Batch,
    accumulation: int,
    rngs: dict[str, jax.Array],
) -> tuple[Sums, PyTree]:
    def objective(
        params: PyTree, rows: Batch, rngs: dict[str, jax.Array]
    ) -> tuple[jax.Array, Sums]:
        sums = loss_sums(join(state.base, state.frozen, params), rows, **rngs)
        return sums.loss + sums.z_loss, sums

    gradient = jax.grad(objective, has_aux=True)
    if accumulation == 1:
        gradients, sums = gradient(state.params, batch, rngs)
        return sums, gradients

    def add_micro_batch(
        total: tuple[PyTree, Sums], part: tuple
    ) -> tuple[tuple[PyTree, Sums], None]:
        return jax.tree.map(jnp.add, total, gradient(state.params, *part)), None

    micro_batches = jax.tree.map(lambda x: _split_rows(x, accumulation), batch)
    keys = jax.tree.map(lambda key: jax.random.split(key, accumulation), rngs)
    parts = (micro_batches, keys)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), parts)
    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, state.params, *one)
    )
    (gradients, sums), _ = jax.lax.scan(add_micro_batch, zero, parts)
    return sums, gradients


def _split_rows(x: jax.Array, parts: int) -> jax.Array:
    """[rows, ...] to [parts, rows / parts, ...], every part taking rows from every data shard."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _moving_average(average: PyTree | None, params: PyTree, decay: float | None) -> PyTree | None:
    if decay is None:
        return None
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
