"""Filters of the next token's distribution, on a distribution small enough to see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.generate.sampling import Sampling, filter_logits, sample

PROBABILITIES = np.array([[0.1, 0.4, 0.05, 0.25, 0.2]])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.66}, [1, 3, 4]),
        ({"top_p": 1e-6}, [1]),
        ({"min_p": 0.5}, [1, 3, 4]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "top_p": 0.7}, [1, 3]),  # 0.4/0.85 and 0.25/0.85 reach 0.7
    ],
    ids=str,
)
def test_filters_keep_the_likeliest(options: dict, kept: list[int]) -> None:
    logits = filter_logits(LOGITS, Sampling(**options))
    assert np.flatnonzero(np.isfinite(logits[0])).tolist() == kept


def test_samples_follow_the_tempered_distribution() -> None:
    draws = sample(jnp.repeat(LOGITS, 20_000, axis=0), jax.random.key(0), Sampling(0.5))
    expected = PROBABILITIES[0] ** 2 / np.sum(PROBABILITIES**2)
    # Three standard deviations of a frequency among 20,000 draws are below 0.011.
    np.testing.assert_allclose(np.bincount(draws, minlength=5) / 20_000, expected, atol=0.011)


def test_temperature_zero_is_the_likeliest_token() -> None:
    assert sample(LOGITS, jax.random.key(0), Sampling(0)).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; allowed: 0"),
        ({"top_k": 0}, "top_k is 0; allowed: 1 or more"),
        ({"top_p": 1.5}, "top_p is 1.5; allowed: more than 0, at most 1"),
        ({"min_p": 0.0}, "min_p is 0.0; allowed: more than 0, at most 1"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)
