"""Every registered mixer stays finite, and tells its costs as they are."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from contracts.cases import CASES, D_MODEL, ENCODERS
from contracts.contract import (
    LENGTH,
    assert_close,
    build,
    differentiated,
    one_document,
    run,
    setup,
)
from contracts.definition import Case
from contracts.products import product_flops

from jaxformer.model.dims import Grid
from jaxformer.model.mixers import MIXERS
from jaxformer.model.mixers.base import MixerConfig
from jaxformer.ops.delta_rule import SMALLEST_INVERSE
from jaxformer.ops.row_attention import SMALLEST_BLOCK


def kinds(cases: Iterable[Case]) -> set[str]:
    return {case.config.kind for case in cases}


def test_every_registered_mixer_has_a_case() -> None:
    """And what an encoder's case stands for is no mixer that could be causal. What reads a source
    has a contract of its own, tests/model/test_encoder_decoder.py."""
    registered = {config.model_fields["kind"].default for config in MIXERS} - {"cross_attention"}
    causal, encoders = kinds(CASES.values()), kinds(ENCODERS.values())
    assert registered == causal | encoders
    assert all(case.is_causal and case.config.is_causal for case in CASES.values())
    assert all(not case.is_causal and case.config.sees_both_ways for case in ENCODERS.values())
    assert kinds(case for case in CASES.values() if case.config.sees_both_ways) <= encoders
    assert kinds(case for case in ENCODERS.values() if case.config.is_causal) <= causal


def are_finite(tree: object) -> bool:
    return all(np.isfinite(np.asarray(leaf, np.float64)).all() for leaf in jax.tree.leaves(tree))


def test_bfloat16_is_near_float64_and_finite_at_extremes(case: Case) -> None:
    mixer, params, x = setup(case)
    # Numbers that bfloat16 holds: rounding the input alone would move a small head's norm by 5%.
    params, x = jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(jnp.bfloat16).astype(leaf.dtype), (params, x)
    )
    exact = run(mixer, params, x)
    half = differentiated(build(case, dtype="bfloat16"))
    rows, ones = one_document(LENGTH), np.ones(x.shape, jnp.bfloat16)
    (_, y), _ = half(params, x.astype(jnp.bfloat16), rows, ones)
    assert y.dtype == jnp.bfloat16
    # bfloat16 has 8 bits: 2⁻⁸ a rounding, a handful of roundings from input to output.
    assert_close(np.asarray(y, np.float64), exact, relative=8 * 2**-8)

    assert are_finite(half(params, (1e4 * x).astype(jnp.bfloat16), rows, ones))


def test_parameters_are_float32_whatever_jax_enable_x64_says(any_case: Case) -> None:
    x = jnp.zeros((1, LENGTH, D_MODEL))
    assert x.dtype == jnp.float64  # what JAX makes by itself here
    params = jax.eval_shape(build(any_case).init, jax.random.key(0), x, one_document(LENGTH, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_cache_bytes_are_those_of_the_cache(case: Case) -> None:
    mixer = build(case)
    for length in (1, 7, 64):
        cache = jax.eval_shape(lambda n=length: mixer.init_cache(3, n, jnp.float64))
        leaves = jax.tree.leaves(cache)
        assert {leaf.shape[0] for leaf in leaves} == {3}  # rows can be chosen from two caches
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        assert total == 3 * mixer.cache_bytes(length)


def test_flops_are_those_of_the_products_and_a_stated_rest(any_case: Case) -> None:
    """At a length that is a multiple of every chunk."""
    width, length, grid = 256, 1024, Grid(32, 32)
    wide = any_case._replace(config=any_case.wide or any_case.config)
    mixer = build(wide, d_model=width, dtype="float32", grid=grid)
    x = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
    rows = one_document(length, batch=1)
    params = jax.eval_shape(lambda: mixer.init(jax.random.key(0), jnp.zeros(x.shape), rows))
    program = jax.make_jaxpr(lambda p, x: mixer.apply(p, x, rows)[0])(params, x)
    products = product_flops(program.jaxpr) / length
    stated = beside_products(mixer.config, width, any_case.is_causal)
    # A block of queries meets the keys that any of them sees, fewer than a block more than each.
    unseen = (SMALLEST_BLOCK - 1) * per_pair(mixer.config, width)
    rounding = 1e-9 * products
    assert -rounding <= products + stated - mixer.flops(length) <= unseen + rounding


def beside_products(config: MixerConfig, width: int, is_causal: bool = True) -> float:
    """FLOPs per token that a mixer counts and that are no matrix products, in a causal model or in
    an encoder."""
    tap = 2.0  # of a convolution, for each channel
    rows = 2.0 * SMALLEST_INVERSE**2 / 3  # of an inverse, where it is made row by row
    match config.kind:
        case "delta" | "gated_delta" | "comba" | "kda" | "gated_delta2":
            return tap * config.conv_width * config.channels + rows * config.num_heads
        case "delta_product":
            inverses = config.num_householder * config.num_heads
            return tap * config.conv_width * config.channels + rows * inverses
        case "rwkv7":
            return rows * width / config.head_dim
        case "mamba2":
            inner = config.expansion * width
            return tap * config.conv_width * (inner + 2 * config.num_groups * config.state_size)
        case "mamba":
            return (tap * config.conv_width + 2 * config.state_size) * config.expansion * width
        case "rglru":
            return (tap * config.conv_width + 10) * config.expansion * width
        case "slstm":
            return (tap * config.conv_width + 30) * width
        case "s4d":
            return 3 * config.state_size * width
        case "min_gru":
            return 4 * config.expansion * width
        case "hgrn":
            return 8 * config.expansion * width
        case "convolution":  # two filters in an encoder
            return tap * config.width * config.expansion * width * (1 if is_causal else 2)
        case "parallel":
            return 2 * len(config.mixers) * width
        case "bidirectional":
            added = width if config.merge == "sum" else 0
            return 2 * beside_products(config.mixer, width) + added
        case "scanned":
            return beside_products(config.mixer, width)
        case _:
            return 0.0


def per_pair(config: MixerConfig, width: int) -> float:
    """FLOPs of a query that meets one key more, in all heads."""
    match config.kind:
        case (
            "attention"
            | "forgetting_attention"
            | "stick_breaking_attention"
            | "tensor_product_attention"
        ):
            return 4.0 * config.num_heads * (config.head_dim or width / config.num_heads)
        case "differential_attention":  # two maps, of values twice as wide as keys
            head_dim = config.head_dim or width / config.num_heads / 2
            return 2 * 2.0 * config.num_heads * (head_dim + 2 * head_dim)
        case "latent_attention":
            sizes = config.head_dim + config.rope_dim + config.value_dim
            return 2.0 * config.num_heads * sizes
        case "parallel":
            return sum(per_pair(part, width) for part in config.mixers)
        case "scanned":
            return per_pair(config.mixer, width)
        case _:
            return 0.0
