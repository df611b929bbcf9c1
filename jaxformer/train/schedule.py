"""The learning rate's factor over a run."""

from collections.abc import Callable

import jax
import optax

from jaxformer.config import ScheduleConfig
from jaxformer.train.default_types import without_x64

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(config: ScheduleConfig, steps: int) -> Schedule:
    """The factor on the base learning rate as a function of the updates already tried, s = 0, 1, …

    With W = `warmup_steps`, T = `steps`, f = `final_fraction` and p = (s − W) / (T − W):

        warm-up    (s + 1) / W                            while s < W
        cosine     f + (1 − f) (1 + cos πp) / 2
        linear     1 − (1 − f) p
        constant   1
        wsd        1 until s = T − D, then linearly towards f over D = `decay_steps`

    The first update already has a rate above zero and the last one is a step short of f, so no
    update is wasted. A skipped update counts: the rate is a function of the step alone, and so the
    same however often a run was resumed.
    """
    warmup, final = config.warmup_steps, config.final_fraction
    rest = max(steps - warmup, 1)
    decay = min(config.decay_steps or max(steps // 5, 1), rest)
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(1.0, rest, alpha=final),
        "linear": lambda: optax.linear_schedule(1.0, final, rest),
        "constant": lambda: optax.constant_schedule(1.0),
        "wsd": lambda: optax.linear_schedule(1.0, final, decay, transition_begin=rest - decay),
    }[config.kind]()
    if warmup == 0:
        return without_x64(after)
    rise = optax.polynomial_schedule(1 / warmup, 1.0 + 1 / warmup, power=1, transition_steps=warmup)
    return without_x64(optax.join_schedules((rise, after), (warmup,)))
