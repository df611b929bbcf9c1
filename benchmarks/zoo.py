"""Every mixer as the benchmarks run it: width 256, four heads where it has a choice of heads."""

from jaxformer.model.mixers import MIXERS
from jaxformer.schema_tree import kind_of

D_MODEL, D_HIDDEN = 256, 688
KINDS = [str(kind_of(config)) for config in MIXERS]

HEADS = {"num_heads": 4}
WITH_HEADS = ("attention", "retention", "gla")
WITH_HEAD_SIZES = ("delta", "gated_delta", "kda", "delta_product")


def mixer(kind: str, d_model: int = D_MODEL) -> dict:
    """The `mixer:` section of a configuration; where the defaults follow the width, they stand."""
    options: dict = {}
    if kind in WITH_HEADS:
        options = HEADS
    elif kind in WITH_HEAD_SIZES:
        options = HEADS | {"head_dim": d_model // 4, "value_expansion": 1.0}
    elif kind == "parallel":
        window = {"kind": "attention", "window": 256} | HEADS
        options = {"mixers": [window, {"kind": "mamba2"}]}
    return {"kind": kind} | options
