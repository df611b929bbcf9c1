"""Mixers side by side: the weighted sum of their own definitions."""

import jax
from contracts.definition import ROPE, Case
from contracts.definitions.attention import attention
from contracts.definitions.retention import retention

from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.model.mixers.parallel import ParallelConfig
from jaxformer.model.mixers.retention import RetentionConfig
from jaxformer.model.positions import PositionsUnion


def parallel(params: dict, x: jax.Array, config: ParallelConfig, scheme: PositionsUnion):
    window, memory = config.mixers
    branches = [
        attention(params["attention_0"], x, window, scheme),
        retention(params["retention_1"], x, memory, scheme),
    ]
    return params["beta"][0] * branches[0] + params["beta"][1] * branches[1]


CASES = {
    "parallel": Case(
        ParallelConfig(
            mixers=(AttentionConfig(num_heads=2, window=3), RetentionConfig(num_heads=3))
        ),
        ROPE,
        parallel,
        ParallelConfig(
            mixers=(AttentionConfig(num_heads=4, window=256), RetentionConfig(num_heads=4))
        ),
    )
}
