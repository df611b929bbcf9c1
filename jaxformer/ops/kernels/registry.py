"""The registry of kernels, by operation and name."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxformer.ops.kernels import cudnn, splash


class Kernel(NamedTuple):
    """An implementation of an operation in place of XLA's.

    platform: the devices it is written for, as JAX names them: `tpu`, `gpu`, `cpu`.
    obstacle: why it cannot serve the operation's inputs; None if it can.
    takes_sink_logit: whether a kernel of attention can have one.
    """

    platform: str
    obstacle: Callable[..., str | None]
    call: Callable[..., jax.Array]
    takes_sink_logit: bool = False


# For `attention`: obstacle(q, v, visibility, logit_softcap), and call(q, k, v, positions,
# segment_ids, **options) of whole rows to themselves, as `ops.attention.attend` has it, with
# sink_logit after segment_ids where there is one.
KERNELS: dict[str, dict[str, Kernel]] = {
    "attention": {
        "splash": Kernel("tpu", splash.obstacle, splash.attend, takes_sink_logit=True),
        "cudnn": Kernel("gpu", cudnn.obstacle, cudnn.attend),
    },
}


def names(operation: str) -> tuple[str, ...]:
    """What may be asked for: `auto`, `xla` for no kernel, or one by its name."""
    return ("auto", "xla", *KERNELS[operation])
