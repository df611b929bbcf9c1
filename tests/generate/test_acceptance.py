"""The law of what speculative decoding samples is the target's, by summing over all its choices."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.generate.acceptance import accept, acceptance, law, next_law
from jaxformer.generate.sampling import Sampling, sample

VOCAB, DRAFTED = 4, 3
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.6, top_k=3),
    Sampling(temperature=1.3, top_p=0.8),
    Sampling(min_p=0.3),
]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def laws_of_prefixes(seed: int, sampling: Sampling) -> dict[tuple[int, ...], np.ndarray]:
    """A law over the next token, filtered, after every prefix of up to DRAFTED tokens."""
    random = np.random.default_rng(seed)
    return {
        prefix: np.asarray(law(jnp.array(random.normal(0, 1.5, (1, VOCAB))), sampling))[0]
        for length in range(DRAFTED + 1)
        for prefix in itertools.product(range(VOCAB), repeat=length)
    }


def stacked(laws: dict, drafted: tuple[int, ...], count: int) -> jax.Array:
    return jnp.array([[laws[drafted[:place]] for place in range(count)]])


@pytest.mark.parametrize("is_certain", [False, True], ids=["drawn", "certain"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_every_token_of_a_verification_has_the_targets_law(
    sampling: Sampling, is_certain: bool
) -> None:
    """The law of the algorithm's output, n tokens that stay and the one behind them, is summed over
    all drafts and all acceptances; what is missing of 4 tokens comes from the target itself. It is
    the product of the target's laws, for every sequence of 4."""
    p, q = laws_of_prefixes(0, sampling), laws_of_prefixes(1, sampling)
    if is_certain:
        q = {prefix: np.eye(VOCAB)[law.argmax()] for prefix, law in q.items()}
    total: dict[tuple[int, ...], float] = {}
    for drafted in itertools.product(range(VOCAB), repeat=DRAFTED):
        chance = np.prod([q[drafted[:place]][drafted[place]] for place in range(DRAFTED)])
        if chance == 0:
            continue
        of_target, of_draft = stacked(p, drafted, DRAFTED + 1), stacked(q, drafted, DRAFTED)
        stays = np.asarray(acceptance(of_target, of_draft, jnp.array([drafted])))[0]
        following = np.asarray(next_law(of_target, of_draft))[0]
        for accepted in range(DRAFTED + 1):
            this = chance * np.prod(stays[:accepted])
            this *= 1 - stays[accepted] if accepted < DRAFTED else 1
            for token in range(VOCAB):
                output = (*drafted[:accepted], token)
                total[output] = total.get(output, 0.0) + this * following[accepted, token]
    for sequence in itertools.product(range(VOCAB), repeat=DRAFTED + 1):
        expected = np.prod([p[sequence[:place]][sequence[place]] for place in range(DRAFTED + 1)])
        found = sum(
            total.get(sequence[:made], 0.0)
            * np.prod([p[sequence[:place]][sequence[place]] for place in range(made, DRAFTED + 1)])
            for made in range(1, DRAFTED + 2)
        )
        assert abs(found - expected) < 1e-12
    assert abs(sum(total.values()) - 1) < 1e-12


def test_what_is_drawn_has_that_law() -> None:
    """20,000 rows of two drafted tokens: counts of the first new token within five deviations."""
    rows, sampling = 20_000, Sampling(temperature=0.8, top_k=3)
    of_target, of_draft = (
        jax.random.normal(jax.random.key(seed), shape)
        for seed, shape in ((0, (1, 3, VOCAB)), (1, (1, 2, VOCAB)))
    )
    logits = jnp.broadcast_to(of_target, (rows, 3, VOCAB))
    drawn = jnp.stack(
        [
            sample(
                jnp.broadcast_to(of_draft[0, place], (rows, VOCAB)), jax.random.key(place), sampling
            )
            for place in (0, 1)
        ],
        axis=1,
    )
    q = jnp.broadcast_to(law(of_draft, sampling), (rows, 2, VOCAB))
    accepted, following = accept(logits, drawn, q, jax.random.key(5), sampling)
    first = np.where(accepted > 0, drawn[:, 0], following)
    expected = np.asarray(law(of_target, sampling))[0, 0]
    counts = np.bincount(first, minlength=VOCAB)
    assert (np.abs(counts - rows * expected) <= 5 * np.sqrt(rows * expected)).all()
    assert 0.1 < np.mean(np.asarray(accepted) == 2) < 0.9
    # The second token, where the first stayed, has the second law.
    second = np.where(accepted > 1, drawn[:, 1], following)[np.asarray(accepted) > 0]
    expected = np.asarray(law(of_target, sampling))[0, 1]
    counts = np.bincount(second, minlength=VOCAB)
    assert (np.abs(counts - len(second) * expected) <= 5 * np.sqrt(len(second) * expected)).all()


def test_a_draft_with_the_targets_law_is_never_refused() -> None:
    logits = jax.random.normal(jax.random.key(0), (50, 3, VOCAB))
    drafted = jax.random.categorical(jax.random.key(1), logits[:, :2])
    accepted, following = accept(
        logits, drafted, law(logits, Sampling())[:, :2], jax.random.key(2), Sampling()
    )
    assert (accepted == 2).all() and len(set(following.tolist())) == VOCAB


def test_greedy_acceptance_ends_at_the_first_other_token() -> None:
    likeliest = jnp.array([[1, 2, 3, 0]] * 4)
    logits = jax.nn.one_hot(likeliest, VOCAB)
    drafted = jnp.array([[0, 2, 3], [1, 0, 3], [1, 2, 0], [1, 2, 3]])
    accepted, following = accept(logits, drafted, None, jax.random.key(0), Sampling(temperature=0))
    assert accepted.tolist() == [0, 1, 2, 3]
    assert following.tolist() == [1, 2, 3, 0]
