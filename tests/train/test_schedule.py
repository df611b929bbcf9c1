import jax
import numpy as np
import pytest

from jaxformer.config import ScheduleConfig
from jaxformer.train.schedule import make_schedule


def factors(steps: int, **options) -> np.ndarray:
    schedule = make_schedule(ScheduleConfig(**options), steps)
    return np.array([schedule(step) for step in range(steps)])


def test_warm_up_rises_in_equal_parts_to_one():
    assert factors(10, kind="constant", warmup_steps=4) == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1], abs=1e-6
    )


def test_cosine_falls_over_the_rest_of_the_run():
    progress = (np.arange(2, 10) - 2) / 8
    expected = 0.1 + 0.9 * (1 + np.cos(np.pi * progress)) / 2
    found = factors(10, kind="cosine", warmup_steps=2, final_fraction=0.1)
    assert found[:2] == pytest.approx([0.5, 1.0], abs=1e-6)
    assert found[2:] == pytest.approx(expected, abs=1e-6)


def test_linear_falls_in_equal_parts():
    found = factors(5, kind="linear", final_fraction=0.5)
    assert found == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6], abs=1e-6)


def test_wsd_stays_and_falls_over_its_last_steps():
    found = factors(10, kind="wsd", warmup_steps=2, decay_steps=4)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25], abs=1e-6)


def test_wsd_falls_over_a_fifth_of_the_run_if_not_told():
    found = factors(10, kind="wsd")
    assert found == pytest.approx([1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5], abs=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_a_warm_up_as_long_as_the_run_is_all_of_it(kind):
    assert factors(4, kind=kind, warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_no_update_has_a_rate_of_zero(kind):
    assert factors(20, kind=kind, warmup_steps=5).min() > 0


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_a_factor_is_the_same_to_the_last_bit_under_jax_enable_x64(kind):
    schedule = make_schedule(ScheduleConfig(kind=kind, warmup_steps=3), 11)
    steps = np.arange(11, dtype=np.int32)
    plain = jax.vmap(schedule)(steps)
    with jax.enable_x64(True):
        wide = jax.vmap(schedule)(steps)
    assert wide.dtype == plain.dtype == np.float32
    np.testing.assert_array_equal(wide, plain)
