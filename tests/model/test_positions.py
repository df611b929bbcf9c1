"""Position schemes against figures worked out by hand or by another formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.model.positions import (
    DynamicScalingConfig,
    LinearScalingConfig,
    Llama3ScalingConfig,
    LongRoPEScalingConfig,
    NTKScalingConfig,
    RoPEConfig,
    SinusoidalPositionsConfig,
    YaRNScalingConfig,
    _rotate_by_product,
    _rotate_halves,
    alibi_slopes,
    rope,
    rope_frequencies,
    rope_rotation,
    sinusoidal,
)
from jaxformer.model.rows import RowInfo


def turn(x: jnp.ndarray, positions: list[int], config: RoPEConfig) -> jnp.ndarray:
    """x [1, length, heads, head_dim], rotated."""
    return rope(x, rope_rotation(of_one(jnp.array([positions])), config, x.shape[-1], x.dtype))


def of_one(positions: jax.Array) -> RowInfo:
    """Rows of one document each."""
    return RowInfo(positions, jnp.ones_like(positions))


def test_rope_logits_depend_on_the_distance_alone() -> None:
    config = RoPEConfig(base=100.0)
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def logit(i: int, j: int) -> float:
        turned = [turn(jnp.asarray(x), [p], config) for x, p in ((q, i), (k, j))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert logit(9, 4) == pytest.approx(logit(105, 100), abs=1e-5)
    assert abs(logit(9, 4) - logit(9, 5)) > 0.01


def test_rope_phases_of_bfloat16_inputs_are_float32() -> None:
    """Positions 1000 and 1001 are the same number in bfloat16."""
    x = jnp.ones((1, 2, 1, 2), jnp.bfloat16)
    turned = turn(x, [1000, 1001], RoPEConfig()).astype(jnp.float32)
    expected = [[np.cos(p) - np.sin(p), np.sin(p) + np.cos(p)] for p in (1000, 1001)]
    np.testing.assert_allclose(turned[0, :, 0], expected, atol=2**-7)


def test_a_fraction_leaves_the_other_features_alone() -> None:
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    turned = turn(x, [3], RoPEConfig(fraction=0.5))
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    assert (turned[..., :4] != x[..., :4]).all()


def test_linear_scaling_divides_every_frequency() -> None:
    plain, _ = rope_frequencies(RoPEConfig(), 8)
    scaled, factor = rope_frequencies(RoPEConfig(scaling=LinearScalingConfig(factor=4.0)), 8)
    np.testing.assert_allclose(scaled, plain / 4)
    assert factor == 1.0


def test_ntk_scaling_keeps_the_fastest_pair_and_divides_the_slowest() -> None:
    plain, _ = rope_frequencies(RoPEConfig(), 8)
    scaled, _ = rope_frequencies(RoPEConfig(scaling=NTKScalingConfig(factor=4.0)), 8)
    np.testing.assert_allclose(scaled[[0, -1]], plain[[0, -1]] / [1, 4])


def test_yarn_keeps_fast_pairs_divides_slow_ones_and_sharpens_attention() -> None:
    scaling = YaRNScalingConfig(factor=4.0, original_max_length=4096)
    plain, _ = rope_frequencies(RoPEConfig(), 128)
    scaled, factor = rope_frequencies(RoPEConfig(scaling=scaling), 128)
    share = scaled / plain
    # 32 turns in 4,096 positions are made by pair 20.9, one turn by pair 45.03.
    np.testing.assert_allclose(share[:21], 1.0)
    np.testing.assert_allclose(share[46:], 0.25)
    assert (np.diff(share[20:47]) < 0).all()
    assert factor == pytest.approx(1.1386294)  # 0.1 ln 4 + 1


def test_yarn_takes_an_attention_factor_and_ends_of_the_ramp_between_pairs() -> None:
    options = {"factor": 4.0, "original_max_length": 4096}
    scaling = YaRNScalingConfig(**options, attention_factor=0.5, truncate=False)
    plain, _ = rope_frequencies(RoPEConfig(), 128)
    scaled, factor = rope_frequencies(RoPEConfig(scaling=scaling), 128)
    # Of the ramp from 20.944 to 45.027, pair 21 is at (21 − 20.944) / 24.083.
    assert (scaled / plain)[21] == pytest.approx(1 - 0.75 * 0.00232, abs=1e-4)
    assert factor == 0.5


def test_dynamic_scaling_begins_where_a_document_outgrows_its_original_length() -> None:
    dynamic = RoPEConfig(scaling=DynamicScalingConfig(factor=4.0, original_max_length=10))
    plain, _ = rope_frequencies(RoPEConfig(), 8)
    lengths = np.array([[1.0], [10.0], [20.0]])
    scaled, _ = rope_frequencies(dynamic, 8, lengths)
    np.testing.assert_allclose(scaled[:2], [plain, plain], rtol=1e-6)
    ntk = RoPEConfig(scaling=NTKScalingConfig(factor=5.0))  # 4 · 20 / 10 − 3
    np.testing.assert_allclose(scaled[2], rope_frequencies(ntk, 8)[0], rtol=1e-5)


def test_longrope_takes_the_long_factors_for_longer_documents_alone() -> None:
    scaling = LongRoPEScalingConfig(
        short_factors=(1.0, 2.0),
        long_factors=(4.0, 8.0),
        original_max_length=3,
        attention_factor=1.5,
    )
    config = RoPEConfig(scaling=scaling)
    plain, _ = rope_frequencies(RoPEConfig(), 4)
    for length, factors in ((3, [1, 2]), (4, [4, 8])):
        scaled, factor = rope_frequencies(config, 4, np.array([[float(length)]]))
        np.testing.assert_allclose(scaled, [plain / factors], rtol=1e-6)
        assert factor == 1.5
    # A document of three tokens and one of four, packed, are each as they are alone.
    positions, segments = jnp.array([[0, 1, 2, 0, 1, 2, 3]]), jnp.array([[1, 1, 1, 2, 2, 2, 2]])
    packed = rope_rotation(RowInfo(positions, segments), config, 4, jnp.float32)
    for start, stop in ((0, 3), (3, 7)):
        alone = rope_rotation(of_one(positions[:, start:stop]), config, 4, jnp.float32)
        for ours, expected in zip(packed, alone, strict=True):
            np.testing.assert_array_equal(ours[:, start:stop], expected)


def test_longrope_has_a_factor_for_every_rotated_pair() -> None:
    scaling = LongRoPEScalingConfig(
        short_factors=(1.0, 2.0), long_factors=(4.0,), original_max_length=3
    )
    with pytest.raises(ValueError, match="1 long_factors, but RoPE rotates 2 pairs"):
        RoPEConfig(scaling=scaling).rotated_size(4)


def test_llama3_scaling_ramps_between_its_two_wavelengths() -> None:
    scaling = Llama3ScalingConfig(factor=8.0, original_max_length=8192)
    plain, _ = rope_frequencies(RoPEConfig(base=500000.0), 128)
    scaled, _ = rope_frequencies(RoPEConfig(base=500000.0, scaling=scaling), 128)
    wavelength = 2 * np.pi / plain
    np.testing.assert_allclose((scaled / plain)[wavelength < 8192 / 4], 1.0)
    np.testing.assert_allclose((scaled / plain)[wavelength > 8192], 1 / 8)


def test_sinusoidal_interleaves_sine_and_cosine() -> None:
    table = sinusoidal(jnp.array([[0, 5]]), 4)
    expected = [np.sin(5), np.cos(5), np.sin(0.05), np.cos(0.05)]
    np.testing.assert_allclose(table[0], [[0, 1, 0, 1], expected], atol=1e-6)


def test_halves_are_all_sines_and_then_all_cosines() -> None:
    """Down to a frequency of 10⁻⁴ itself."""
    table = sinusoidal(jnp.array([[0, 5]]), 6, "halves")
    angles = 5 * np.array([1, 0.01, 0.0001])
    expected = [[0, 0, 0, 1, 1, 1], [*np.sin(angles), *np.cos(angles)]]
    np.testing.assert_allclose(table[0], expected, atol=1e-6)
    with pytest.raises(ValueError, match="needs an even d_model of at least 4, and d_model is 5"):
        SinusoidalPositionsConfig(layout="halves").check(5)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [(4, [2**-2, 2**-4, 2**-6, 2**-8]), (3, [2**-4, 2**-8, 2**-2])],
)
def test_alibi_slopes_are_the_papers(heads: int, slopes: list[float]) -> None:
    np.testing.assert_allclose(alibi_slopes(heads), slopes)


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_rotation_by_a_product_is_that_of_halves_to_the_last_bit(fraction):
    config = RoPEConfig(fraction=fraction)
    x = jax.random.normal(jax.random.key(0), (2, 7, 3, 8))
    positions = jnp.arange(14).reshape(2, 7)
    rotation = rope_rotation(of_one(positions), config, 8, x.dtype)
    assert jnp.array_equal(_rotate_by_product(x, *rotation), _rotate_halves(x, *rotation))
