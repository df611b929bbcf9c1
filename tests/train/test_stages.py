"""Text, length and batch that change in mid-run: as if the run were stopped and resumed with other
data, to the last bit."""

import re

import jax
import numpy as np
import pytest

from jaxformer.config import Config
from jaxformer.data.loader import rows_per_source
from jaxformer.errors import UserError
from jaxformer.train import stages
from jaxformer.train.run import train
from tests.runs import assert_same_arrays, make_config, results, saved_arrays, write_text
from tests.train.test_loop import signal_at_step

# A mixture first; then rows of twice the length, one source alone; then larger batches of the first
# length, of which the weights differ.
UNTIL = (4, 8)


def words(folder, letters):
    """Another text, as a source."""
    path = folder / f"{letters}.txt"
    random = np.random.default_rng(1)
    path.write_text(" ".join("".join(random.choice(list(letters), 4)) for _ in range(4000)))
    return f"text:{path}"


def three_stages(folder):
    one, other = write_text(folder), words(folder, "klmn")
    return [
        {"until": UNTIL[0], "source": [{"source": one, "weight": 2}, {"source": other}]},
        {"until": UNTIL[1], "source": other, "sequence_length": 32, "batch_size": 2},
        {"source": [{"source": other, "weight": 3}, {"source": one}], "batch_size": 8},
    ]


def staged(folder, stages=None, accept=(), **sections):
    folder.mkdir(exist_ok=True)
    data = {} if stages is None else {"stages": stages}
    run = {"dir": str(folder / "run"), "accept_changes": list(accept)}
    sections = {"checkpoint": {"every": 4, "keep_newest": 9}, **sections}
    data |= sections.pop("data", {})
    return make_config(folder, data=data, run=run, **sections)


def stop_at(monkeypatch, step, config):
    with monkeypatch.context() as patch:
        signal_at_step(patch, step)
        assert train(config) == 75


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three stages, never stopped."""
    folder = tmp_path_factory.mktemp("stages")
    assert train(staged(folder, three_stages(folder))) == 0
    return folder


def assert_same_runs(one, other):
    assert results(one / "run") == results(other / "run")
    for step in (4, 8, 12):
        assert_same_arrays(saved_arrays(one / "run", step), saved_arrays(other / "run", step))


def test_tokens_are_summed_over_the_stages(finished):
    rows = [row for row in results(finished / "run") if "loss" in row]
    per_step = [4 * 16] * 4 + [2 * 32] * 4 + [8 * 16] * 4
    assert {row["step"]: row["tokens"] for row in rows} == {
        step: sum(per_step[:step]) for step in (1, 2, 4, 6, 8, 10, 12)
    }


def test_a_run_stopped_and_resumed_with_the_next_data_equals_one_with_stages(
    finished, tmp_path, monkeypatch
):
    first, second, third = three_stages(finished)
    stop_at(monkeypatch, 4, staged(tmp_path, [first | {"until": None}]))
    stop_at(monkeypatch, 8, staged(tmp_path, [second | {"until": None}], ["data"]))
    assert train(staged(tmp_path, [third], ["data"])) == 0
    assert_same_runs(finished, tmp_path)


def test_a_run_killed_in_every_stage_and_between_them_equals_one_that_never_stopped(
    finished, tmp_path, monkeypatch
):
    for step in (2, 4, 7, 10):
        stop_at(monkeypatch, step, staged(tmp_path, three_stages(finished)))
    assert train(staged(tmp_path, three_stages(finished))) == 0
    assert_same_runs(finished, tmp_path)
