"""Every mixer as the benchmarks run it: width 256, four heads where it has a choice of heads."""

from jaxformer.model.mixers import MIXERS
from jaxformer.schema_tree import kind_of

D_MODEL, D_HIDDEN = 256, 688
KINDS = [str(kind_of(config)) for config in MIXERS]

HEADS = {"num_heads": 4}


def mixer(kind: str, d_model: int = D_MODEL) -> dict:
    """The `mixer:` section of a configuration: a memory [d_model / 4, d_model / 4] a head where the
    sizes can be chosen, so that weights and states are near attention's; else the defaults."""
    size = d_model // 4
    options: dict = {
        "attention": HEADS,
        "retention": HEADS | {"value_expansion": 1.0},
        "gla": HEADS,
        "delta": HEADS | {"head_dim": size},
        "gated_delta": HEADS | {"head_dim": size, "value_expansion": 1.0},
        "kda": HEADS | {"head_dim": size},
        "delta_product": HEADS | {"head_dim": size, "value_expansion": 1.0},
        "mamba2": {"expansion": 1.0, "head_dim": size, "state_size": size},
        "parallel": {
            "mixers": [
                {"kind": "attention", "window": 256} | HEADS,
                {"kind": "mamba2", "expansion": 1.0, "head_dim": size, "state_size": size},
            ]
        },
    }
    return {"kind": kind} | options.get(kind, {})
