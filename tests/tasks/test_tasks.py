"""Every task's rows are what its paper says, checked row by row in plain words."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from jaxformer.data.task_rows import TaskRows
from jaxformer.tasks import TaskUnion

TASKS = {
    "mqar": {"kind": "mqar", "vocab_size": 32, "num_pairs": 5},
    "induction": {"kind": "induction"},
    "selective_copy": {"kind": "selective_copy", "num_tokens": 6},
    "parity": {"kind": "parity"},
    "S3": {"kind": "word_problem", "group": "S3"},
    "A5": {"kind": "word_problem", "group": "A5"},
    "modular_arithmetic": {"kind": "modular_arithmetic"},
    "unequal": {"kind": "unequal", "depth": 3},
    "memorize": {"kind": "memorize", "vocab_size": 16},
}


def make(name: str, **options):
    return TypeAdapter(TaskUnion).validate_python({**TASKS[name], **options})


def rows(name: str, count: int = 50, length: int = 41):
    task = make(name)
    for row in range(count):
        yield task, task.sample(np.random.default_rng(row), length)


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_within_the_vocabulary_and_have_answers(name):
    seen = set()
    for task, (inputs, targets, mask) in rows(name):
        assert inputs.shape == targets.shape == mask.shape == (41,)
        assert inputs.dtype == targets.dtype == np.int32
        assert min(inputs.min(), targets.min()) >= 0
        assert max(inputs.max(), targets.max()) < task.vocabulary
        assert mask.any()
        seen |= set(targets[mask].tolist())
    assert len(seen) > 1


@pytest.mark.parametrize("name", TASKS)
def test_a_row_depends_on_its_number_and_split_alone(name):
    task = make(name)
    train, again, other = (
        TaskRows(task, task.sample, split, 41) for split in ("train", "train", "validation")
    )
    numbers = np.array([3, 1 << 39, 0])
    one, two = train.pack(numbers), again.pack(numbers[[2, 0]])
    np.testing.assert_array_equal(one.inputs[[2, 0]], two.inputs)
    np.testing.assert_array_equal(one.targets[[2, 0]], two.targets)
    assert (one.inputs != other.pack(numbers).inputs).any()
    assert train.manifest() == again.manifest()
    assert TaskRows(make(name), task.sample, "train", 41).manifest() == train.manifest()
    batch = train.pack(numbers)
    assert (batch.positions == np.arange(41)).all() and (batch.segment_ids == 1).all()


def test_mqar_asks_for_the_value_that_was_paired_with_the_key():
    for task, (inputs, targets, mask) in rows("mqar"):
        pairs = dict(zip(inputs[0:10:2].tolist(), inputs[1:10:2].tolist(), strict=True))
        assert len(pairs) == task.num_pairs
        assert all(key < 16 <= value for key, value in pairs.items())
        places = np.flatnonzero(mask)
        assert len(places) == task.num_pairs and places.min() >= 10
        assert sorted(inputs[places].tolist()) == sorted(pairs)
        assert [pairs[key] for key in inputs[places].tolist()] == targets[places].tolist()


def test_keys_of_mqar_return_sooner_more_often():
    places = np.concatenate([np.flatnonzero(mask) for _, (_, _, mask) in rows("mqar", 400)])
    near, far = (places < 18).sum(), (places >= 33).sum()
    assert near > 1.5 * far


def test_induction_asks_for_the_token_after_the_mark():
    for task, (inputs, targets, mask) in rows("induction"):
        mark = task.vocab_size - 1
        first, last = np.flatnonzero(inputs == mark)
        assert last == 40 and mask.tolist() == [False] * 40 + [True]
        assert targets[-1] == inputs[first + 1]


def test_induction_with_several_answers_repeats_the_tokens_after_the_mark():
    task = make("induction", answers=3)
    for row in range(50):
        inputs, targets, mask = task.sample(np.random.default_rng(row), 12)
        first, second = np.flatnonzero(inputs == task.vocab_size - 1)
        assert second == 9 and mask.tolist() == [False] * 9 + [True] * 3
        assert targets[9:].tolist() == inputs[first + 1 : first + 4].tolist()
        assert inputs[10:].tolist() == targets[9:11].tolist()
    with pytest.raises(ValueError, match="answers 3 needs rows of 7 tokens or more, .* is 6"):
        task.check(6)


def test_selective_copying_repeats_the_data_in_order():
    for _, (inputs, targets, mask) in rows("selective_copy"):
        content = inputs[:35]
        assert (inputs[35:] == 1).all() and mask.tolist() == [False] * 35 + [True] * 6
        assert targets[35:].tolist() == content[content > 1].tolist()


def test_parity_counts_the_ones_so_far():
    for _, (inputs, targets, _) in rows("parity"):
        assert targets.tolist() == [sum(inputs[: end + 1]) % 2 for end in range(41)]


@pytest.mark.parametrize(("name", "order"), [("S3", 6), ("A5", 60)])
def test_products_of_a_group_can_be_undone_and_do_not_commute(name, order):
    task = make(name)
    assert task.vocabulary == order
    products: dict[tuple[int, int], int] = {}
    for row in range(40 * order):
        inputs, targets, _ = task.sample(np.random.default_rng(row), 12)
        assert targets[0] == inputs[0]
        products.update(zip(zip(targets[:-1], inputs[1:], strict=True), targets[1:], strict=True))
    by_left: dict[int, list[int]] = {}
    for (left, _), product in products.items():
        by_left.setdefault(left, []).append(product)
    assert all(len(set(found)) == len(found) for found in by_left.values())
    both = [(a, b) for a, b in products if (b, a) in products]
    assert any(products[pair] != products[pair[::-1]] for pair in both)
    # Associative: (a b) c = a (b c), wherever all four were seen.
    checked = 0
    for (a, b), ab in products.items():
        for c in range(order):
            bc = products.get((b, c))
            if (ab, c) in products and (a, bc) in products:
                assert products[ab, c] == products[a, bc]
                checked += 1
    assert checked > 100


def test_modular_arithmetic_lets_products_bind_stronger():
    symbols = "+-*"
    for task, (inputs, targets, _) in rows("modular_arithmetic"):
        text = ""
        for place, token in enumerate(inputs.tolist()):
            if place % 2:
                text += symbols[token - task.modulus]
                assert targets[place] == targets[place - 1]
            else:
                text += str(token)
                assert targets[place] == eval_sum(text) % task.modulus


def eval_sum(text: str) -> int:
    """A sum of products, term by term."""
    total = 0
    for term in text.replace("-", "+-").split("+"):
        sign, factors = (-1, term[1:]) if term.startswith("-") else (1, term)
        total += sign * int(np.prod([int(factor) for factor in factors.split("*")], dtype=object))
    return total


def test_answers_of_unequal_tokens_take_the_steps_that_are_announced():
    seen = set()
    for task, (inputs, targets, _) in rows("unequal"):
        difficulty = task.difficulty(inputs).tolist()
        for start in range(0, 41, 8):
            depth = inputs[start] - 5
            assert 0 <= depth <= 3 and targets[start] == inputs[start] and difficulty[start] == 0
            numbers: list[int] = []
            for place in range(start + 1, min(start + 8, 41)):
                numbers.append(int(inputs[place]))
                assert numbers[-1] < 5
                value, *others = numbers[-1 - depth :]
                assert difficulty[place] == len(others)
                for number in others:
                    value = (value * value + number) % 5
                assert targets[place] == value
                seen.add(len(others))
    assert seen == {0, 1, 2, 3}
    both = np.stack([inputs, inputs[::-1]])
    assert task.difficulty(both)[0].tolist() == difficulty


def test_a_memorised_value_is_the_same_in_every_row_and_another_with_other_facts():
    value_of: dict[int, int] = {}
    for _, (inputs, targets, _) in rows("memorize"):
        for key, value in zip(inputs.tolist(), targets.tolist(), strict=True):
            assert key < 8 <= value
            assert value_of.setdefault(key, value) == value
    assert len(set(value_of.values())) == 8
    other = make("memorize", facts=1).sample(np.random.default_rng(0), 41)
    others = zip(other.inputs.tolist(), other.targets.tolist(), strict=True)
    assert any(value_of[key] != value for key, value in others)


def test_a_needle_is_in_the_text_and_asked_for_at_its_end():
    from jaxformer.data.plain_tokenizers import ByteTokenizer

    tokenizer = ByteTokenizer()
    text = tokenizer.encode("the quick brown fox jumps over the lazy dog. " * 40)
    task = TypeAdapter(TaskUnion).validate_python({"kind": "needle", "depth": 0.5})
    sample = task.sample_from(text, tokenizer.encode)
    inputs, targets, mask = sample(np.random.default_rng(0), 300)
    assert inputs.shape == (300,)
    answer, shown = tokenizer.decode(targets[mask]), tokenizer.decode(inputs)
    assert len(answer) == 6 and answer[1:].isdecimal()
    question = shown[shown.rindex("\nThe secret number of the") :].split(" is")[0]
    assert shown.index(f"{question} is{answer}.") == pytest.approx(100, abs=10)
    assert shown.endswith(f"{question} is{answer[:-1]}")
    with pytest.raises(ValueError, match="sequence_length 50 is too short"):
        sample(np.random.default_rng(0), 50)
