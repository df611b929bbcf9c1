"""Mixers that read a row both ways, arXiv:2401.09417, or a picture in another order,
arXiv:2401.10166: the definition of the mixer within, on explicitly ordered rows."""

from typing import Any

import jax
import jax.numpy as jnp
from contracts.definition import ROPE, Case, compiled
from contracts.definitions.attention import full_attention
from contracts.definitions.comba import comba
from contracts.definitions.gated_delta import gated_delta
from contracts.definitions.mamba2 import mamba2
from contracts.definitions.min_gru import min_gru
from contracts.definitions.retention import retention
from contracts.definitions.rglru import rglru
from contracts.definitions.rwkv6 import rwkv6
from contracts.definitions.rwkv7 import rwkv7
from contracts.definitions.slstm import slstm

from jaxformer.model.mixers.bidirectional import BidirectionalConfig
from jaxformer.model.mixers.scanned import ScannedConfig
from jaxformer.model.positions import ALiBiConfig, NoPositionsConfig, PositionsUnion

# Places in `PICTURE`, two rows of three tokens behind one other:  1 2 3
#                                                                  4 5 6
SCANS = {
    "columns": [0, 1, 4, 2, 5, 3, 6],
    "snake": [0, 1, 2, 3, 6, 5, 4],
    "column_snake": [0, 1, 4, 5, 2, 3, 6],
}


def bidirectional(
    params: dict, x: jax.Array, config: BidirectionalConfig, scheme: PositionsUnion
) -> jax.Array:
    """The mixer run twice."""
    ahead, back = params["forward"], params["forward" if config.shared else "backward"]
    if config.mixer.kind == "scanned":  # both directions of the scan
        order = jnp.array(SCANS[config.mixer.order])
        within = config.model_copy(update={"mixer": config.mixer.mixer})
        parts = {"forward": ahead["mixer"], "backward": back["mixer"]}
        y = bidirectional(params | parts, x[order], within, scheme)
        return jnp.zeros_like(y).at[order].set(y)
    definition = DEFINITIONS[config.mixer.kind]
    y = definition(ahead, x, config.mixer, scheme)
    z = definition(back, x[::-1], config.mixer, scheme)[::-1]
    if config.merge == "sum":
        return y + z
    return jnp.concatenate([y, z], axis=1) @ params["output"]["kernel"]


def scanned(params: dict, x: jax.Array, config: ScannedConfig, scheme: PositionsUnion) -> jax.Array:
    order = jnp.array(SCANS[config.order])
    y = DEFINITIONS[config.mixer.kind](params["mixer"], x[order], config.mixer, scheme)
    return jnp.zeros_like(y).at[order].set(y)


DEFINITIONS = {
    "attention": full_attention,
    "bidirectional": bidirectional,
    "comba": compiled(comba),
    "gated_delta": compiled(gated_delta),
    "mamba2": compiled(mamba2),
    "min_gru": compiled(min_gru),
    "retention": compiled(retention),
    "rglru": compiled(rglru),
    "rwkv6": compiled(rwkv6),
    "rwkv7": compiled(rwkv7),
    "slstm": compiled(slstm),
}


NONE = NoPositionsConfig()


def _both_ways(mixer: dict[str, Any], scheme: PositionsUnion = NONE, **options: Any) -> Case:
    config = BidirectionalConfig.model_validate({"mixer": mixer, **options})
    return Case(config, scheme, bidirectional, is_causal=False)


def _scanned(order: str, mixer: dict[str, Any], scheme: PositionsUnion = NONE) -> Case:
    config = ScannedConfig.model_validate({"order": order, "mixer": mixer})
    return Case(config, scheme, scanned, is_causal=False)


MIN_GRU = {"kind": "min_gru"}
RETENTION = {"kind": "retention", "num_heads": 2, "value_expansion": 1.0}
MAMBA2 = {"kind": "mamba2", "expansion": 1.0, "head_dim": 4, "state_size": 5}
GATED_DELTA = {"kind": "gated_delta", "num_heads": 1, "head_dim": 4, "value_expansion": 1.0}
COMBA = {"kind": "comba", "num_heads": 1, "head_dim": 4, "value_expansion": 1.0}
RWKV6 = {"kind": "rwkv6", "head_dim": 4, "mix_rank": 3, "decay_rank": 3}

# One of every engine.
ENCODERS = {
    "bidirectional_retention": _both_ways(RETENTION, ROPE),
    "bidirectional_mamba2": _both_ways(MAMBA2),
    "bidirectional_gated_delta": _both_ways(GATED_DELTA, merge="concat"),
    "bidirectional_comba": _both_ways(COMBA),
    "bidirectional_rwkv6": _both_ways(RWKV6),
    "bidirectional_rglru": _both_ways({"kind": "rglru", "num_heads": 2}, shared=True),
    "bidirectional_rwkv7": _both_ways({"kind": "rwkv7", "head_dim": 4}),
    "bidirectional_slstm": _both_ways({"kind": "slstm", "num_heads": 2}),
    "bidirectional_scanned": _both_ways(
        {"kind": "scanned", "order": "column_snake", "mixer": MIN_GRU}, shared=True, merge="concat"
    ),
    "scanned_bidirectional": _scanned("columns", {"kind": "bidirectional", "mixer": MIN_GRU}),
    "scanned_attention": _scanned("snake", {"kind": "attention", "num_heads": 2}, ALiBiConfig()),
}
