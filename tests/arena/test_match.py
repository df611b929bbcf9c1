"""Contestants are sized to equal budgets, or it is said why they cannot be."""

import pytest

from jaxformer.arena.config import ArenaConfig
from jaxformer.arena.match import Matched, match, sizes, solve
from jaxformer.errors import UserError

BASE = {
    "model": {
        "d_model": 32,
        "num_layers": 2,
        "mixer": {"kind": "attention", "num_heads": 2},
        "ffn": {"kind": "swiglu", "d_hidden": 96},
    },
    "data": {"task": {"kind": "parity"}, "tokenizer": "ids:2", "sequence_length": 16},
    "train": {"steps": 100},
}
CONTESTANTS = {
    "attention": {},
    "retention": {"model": {"mixer": {"kind": "retention", "num_heads": 2}}},
    "window": {"model": {"mixer": {"window": 8}}},
}


def make_arena(**options):
    return ArenaConfig.model_validate(
        {
            "baseline": "attention",
            "base": BASE,
            "contestants": CONTESTANTS,
            "tasks": {"parity": {}},
            "learning_rates": [1e-3],
            **options,
        }
    )


def never(config):
    raise AssertionError("nothing is to be timed")


@pytest.mark.parametrize("budget", ["parameters", "training_flops"])
def test_every_contestant_is_within_one_per_cent(budget):
    arena = make_arena(match={"budget": budget, "multiple_of": 1})
    matched = match(arena, never)
    target = matched.sizes["parity", "attention"].of(budget)
    for name in CONTESTANTS:
        config = arena.config("parity", name, matched.solved["parity", name])
        assert abs(sizes(config, 2048).of(budget) / target - 1) <= 0.01, name
    assert matched.solved["parity", "attention"] == {}
    assert matched.solved["parity", "retention"]["model.ffn.d_hidden"] < 96
    assert matched.solved["parity", "window"] == {"model.ffn.d_hidden": 96} or (
        budget == "training_flops"
    )


def test_equal_states_are_solved_for_by_a_window():
    arena = make_arena(
        contestants={
            "retention": {"model": {"mixer": {"kind": "retention", "num_heads": 1}}},
            "window": {"model": {"mixer": {"window": 8, "num_kv_heads": 1}}},
        },
        baseline="retention",
        match={"budget": "state_bytes", "solve": "model.mixer.window", "multiple_of": 1},
    )
    matched = match(arena, never)
    own, other = (matched.sizes["parity", name].state_bytes for name in ("window", "retention"))
    assert abs(own / other - 1) <= 0.01


def test_equal_seconds_are_more_steps_of_a_faster_one():
    arena = make_arena(match={"budget": "seconds", "solve": "train.steps", "multiple_of": 1})
    seconds = {"attention": 0.3, "retention": 0.1}
    matched = match(arena, lambda config: seconds.get(config.model.mixer.kind, 0.3))
    assert matched.solved["parity", "retention"] == {"train.steps": 300}
    with pytest.raises(UserError, match=r"give match.solve=train.steps \(it is model"):
        match(make_arena(match={"budget": "seconds"}), lambda config: 1.0)


def test_what_cannot_be_matched_is_refused_with_the_nearest():
    arena = make_arena(match={"multiple_of": 64})
    with pytest.raises(
        UserError,
        match=r"contestant retention on parity cannot match the parameters of attention by "
        r"model.ffn.d_hidden in steps of 64: nothing within 1.0% of 26,784: 64 gives [\d,]+, "
        r"128 gives",
    ):
        match(arena, never)


@pytest.mark.parametrize("target", [1_000.0, 12_345.0, 9_999_999.0])
@pytest.mark.parametrize("cost", [lambda n: 7.0 * n + 100, lambda n: 0.5 * n * n, lambda n: n**1.5])
def test_solving_takes_few_evaluations_of_any_rising_cost(target, cost):
    asked = []
    found = solve(lambda n: asked.append(n) or cost(n), target, 1, 0.02)
    assert abs(cost(found) / target - 1) <= 0.02
    assert len(asked) <= 40
    assert len(set(asked)) == len(asked)


def test_a_match_is_the_same_after_it_was_written_and_read():
    matched = match(make_arena(), never)
    assert Matched.from_json(matched.to_json()) == matched


def test_a_contestant_that_has_no_accuracy_is_refused_where_that_is_compared():
    masked = {
        "model": {"inputs": {"kind": "tokens", "mask": True}},
        "train": {"objective": {"kind": "masked_diffusion"}},
    }
    arena = make_arena(contestants={**CONTESTANTS, "masked": masked})
    with pytest.raises(UserError, match="diffusion, which has no accuracy.*compare it on text"):
        arena.config("parity", "masked", {})
