"""Tensor product attention: how its factors start, and what its cache holds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from contracts.contract import DIMS, one_document
from flax.core import meta

from jaxformer.model.mixers import build_mixer
from jaxformer.model.mixers.attention import AttentionConfig
from jaxformer.model.mixers.tensor_product_attention import TensorProductAttentionConfig
from jaxformer.model.positions import RoPEConfig

DIMS_256 = dataclasses.replace(DIMS, d_model=256, dtype="float32")


def test_factors_start_glorot_uniform() -> None:
    """Uniform in ±√(6 / (inputs + outputs)) of each matrix."""
    config = TensorProductAttentionConfig(num_heads=8, head_dim=32)
    mixer = build_mixer(config, DIMS_256, RoPEConfig(), parent=None)
    x, rows = jnp.zeros((1, 4, 256)), one_document(4, batch=1)
    params = meta.unbox(mixer.init(jax.random.key(0), x, rows)["params"])
    for name, outputs in (("query_heads", 6 * 8), ("key_heads", 2 * 8), ("value_features", 2 * 32)):
        kernel = params[name]["kernel"]
        assert kernel.shape == (256, outputs)
        bound = math.sqrt(6 / (256 + outputs))
        assert 0.98 * bound < np.abs(kernel).max() <= bound
        assert abs(np.std(kernel) - bound / math.sqrt(3)) < 0.02 * bound


def test_its_cache_is_a_few_factors_of_keys_and_values() -> None:
    """(2 + 2) · (8 + 32) numbers a token in place of 2 · 8 · 32; both have 12 bytes of places."""
    config = TensorProductAttentionConfig(num_heads=8, head_dim=32)
    ours = build_mixer(config, DIMS_256, RoPEConfig(), parent=None)
    attention = AttentionConfig(num_heads=8, head_dim=32)
    known = build_mixer(attention, DIMS_256, RoPEConfig(), parent=None)
    assert ours.cache_bytes(1000) == 1000 * (4 * 160 + 12) + 4
    assert known.cache_bytes(1000) == 1000 * (4 * 512 + 12) + 4
