"""Which kernel serves the attention of whole rows to themselves on the current mesh."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxformer.ops import shards
from jaxformer.ops.attention import Order, Visibility
from jaxformer.ops.kernels.registry import KERNELS


class Choice(NamedTuple):
    """The kernel that serves; `xla` is none: the compiler's form, in ops/row_attention.py."""

    name: str
    reason: str = ""  # why no kernel

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.reason else self.name


def choose(
    kernel: str,
    q: jax.Array | jax.ShapeDtypeStruct,
    v: jax.Array | jax.ShapeDtypeStruct,
    *,
    visibility: Visibility,
    order: Order | None = None,
    logit_softcap: float | None = None,
    slopes: np.ndarray | None = None,
    max_distance: int | None = None,
    sink_logit: jax.Array | jax.ShapeDtypeStruct | None = None,
    log_forget: jax.Array | jax.ShapeDtypeStruct | None = None,
    **_: Any,
) -> Choice:
    """The kernel to use for `attend` of these queries and values with these options.

    `auto` is the kernel of the mesh's platform, or `xla` where that cannot serve.

    Raises:
        ValueError: a kernel asked for by name cannot serve.
    """
    if kernel == "xla":
        return Choice("xla", "asked for")
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    kernels = KERNELS["attention"]
    of_platform = (name for name, each in kernels.items() if each.platform == platform)
    name = next(of_platform, None) if kernel == "auto" else kernel
    if name is None:
        return Choice("xla", f"no kernel for {platform}")
    if kernels[name].platform != platform:
        obstacle: str | None = f"it is not for {platform} devices"
    elif mesh.shape.get(shards.AXIS, 1) > 1:
        obstacle = "rows are split over mesh.context, where keys pass around a ring"
    elif order is not None:
        obstacle = "no kernel supports an order of tokens that is not the row's"
    elif slopes is not None:
        obstacle = "no kernel supports ALiBi"
    elif max_distance is not None:
        obstacle = "no kernel supports relative positions"
    elif log_forget is not None:
        obstacle = "no kernel supports forget gates"
    elif sink_logit is not None and not kernels[name].takes_sink_logit:
        obstacle = f"{name} does not support sink_logit"
    else:
        obstacle = kernels[name].obstacle(q, v, visibility, logit_softcap)
    if obstacle is None:
        return Choice(name)
    if kernel != "auto":
        raise ValueError(f"it cannot serve: {obstacle}")
    return Choice("xla", obstacle)


def attend_by(
    name: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    sink_logit: jax.Array | None,
    *,
    place: PartitionSpec,
    **options: Any,
) -> jax.Array:
    """`attend` of whole rows to themselves; every device computes its own rows and heads.

    Args:
        name: what `choose` chose.
        place: the mesh axes of rows and of key-value heads.
    """
    attend = partial(KERNELS["attention"][name].call, **options)
    given = (q, k, v, positions, segment_ids) + (() if sink_logit is None else (sink_logit,))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(*given)
    rows, heads = place
    of_heads, of_tokens = PartitionSpec(rows, None, heads), PartitionSpec(rows)
    every = (of_heads, of_heads, of_heads, of_tokens, of_tokens, PartitionSpec(heads))
    return jax.shard_map(
        attend,
        in_specs=every[: len(given)],
        out_specs=of_heads,
        axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
        check_vma=False,
    )(*given)
