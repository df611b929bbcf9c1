import importlib.util

import pytest

from jaxformer.errors import UserError
from jaxformer.parallel.chips import CHIPS
from jaxformer.plan.topology import compile_only_devices, parse_slice


@pytest.mark.parametrize(
    ("name", "shape", "wrap"),
    [
        ("v4-8", (2, 2, 1), False),
        ("v5p-128", (4, 4, 4), True),
        ("v5p-512", (4, 8, 8), True),
        ("v5p-1024", (8, 8, 8), True),
        ("v5e-16", (4, 4), False),
        ("v6e-256", (16, 16), True),
        ("v7x-64", (2, 4, 4), False),
    ],
)
def test_names_count_cores_of_some_generations_and_chips_of_others(name, shape, wrap):
    where = parse_slice(name)
    assert (where.shape, set(where.wrap)) == (shape, {wrap})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "v5p-100",
            "--topology is 'v5p-100', which is not offered; sizes near it: v5p-16, v5p-32, ",
        ),
        ("v6e-x", "--topology is 'v6e-x', which is not offered; sizes near it: v6e-1, v6e-4, "),
        ("v5q-128", "a generation of v4, v5e, v5p, v6e, v7x. Did you mean 'v5"),
        ("v5p", "--topology is 'v5p'; allowed: GENERATION-NUMBER, such as v5p-128 or v6e-256"),
    ],
)
def test_a_topology_that_is_not_offered_is_refused(name, message):
    with pytest.raises(UserError) as error:
        parse_slice(name)
    assert message in str(error.value)


def test_without_the_compiler_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "jaxformer\[tpu\]"'):
        compile_only_devices(parse_slice("v5p-8"), 1)


def test_clocks_follow_from_the_peaks():
    clocks = {name: round(chip.clock / 1e9, 2) for name, chip in CHIPS.items()}
    assert clocks == {"v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75, "v7x": 2.2}
