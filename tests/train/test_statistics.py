"""Root mean squares per layer."""

import numpy as np
import pytest

from jaxformer.train.run import train
from tests.runs import make_config, results, saved_arrays

MIN_GRU = {"mixer": {"kind": "min_gru"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of five layers in a pattern of two, with statistics and without."""
    found = {}
    for name, every in (("measured", 2), ("plain", None)):
        folder = tmp_path_factory.mktemp(name)
        config = make_config(
            folder,
            model={"num_layers": 5, "pattern": [{}, MIN_GRU]},
            train={
                "steps": 5,
                "log_every": 1,
                "accumulation": 2,
                "layer_statistics": every and {"every": every},
            },
            optimizer={"clip_norm": 0.1},
            checkpoint={"every": 2, "keep_newest": 3},
            eval={"every": 4},
        )
        assert train(config) == 0
        found[name] = folder / "run"
    return found


def test_every_layer_and_what_is_outside_have_a_row_at_the_steps_asked_for(runs):
    rows = [row for row in results(runs["measured"]) if "layer" in row]
    assert [row["step"] for row in rows] == [2] * 6 + [4] * 6 + [5] * 6  # the last step, too
    assert [row["layer"] for row in rows] == [0, 1, 2, 3, 4, None] * 3
    names = {"activation_rms", "gradient_rms", "update_rms", "weight_rms"}
    assert all(names < row.keys() for row in rows if row["layer"] is not None)
    assert all(row[name] > 0 for row in rows for name in names if name in row)


def test_squares_of_gradients_sum_to_that_of_the_norm(runs):
    rows = results(runs["measured"])
    norms = {row["step"]: row["grad_norm"] for row in rows if "grad_norm" in row}
    for step in (2, 4):
        layers = [row for row in rows if row["step"] == step and "layer" in row]
        total = sum(row["gradient_rms"] ** 2 * row["parameters"] for row in layers)
        assert total == pytest.approx(norms[step] ** 2, rel=1e-5)


def test_weights_and_updates_are_those_of_the_checkpoints(runs):
    before, after = (saved_arrays(runs["measured"], step) for step in (2, 4))
    rows = [row for row in results(runs["measured"]) if row["step"] == 4 and "layer" in row]
    layers = [  # where a layer of the pattern of two lies in the stacked arrays, from the bottom up
        *(("['groups']", f"['layer_{index % 2}']", index // 2) for index in range(4)),
        ("['tail']", "['layer_0']", slice(None)),
    ]
    for row, (part, layer, place) in zip(rows, layers, strict=False):
        of_layer = [
            path for path in after if path.startswith("params") and part in path and layer in path
        ]
        weights = np.concatenate([after[path][place].ravel() for path in of_layer])
        assert row["parameters"] == weights.size
        assert row["weight_rms"] == pytest.approx(np.sqrt(np.mean(weights**2)), rel=1e-6)
    assert before.keys() == after.keys()


def test_statistics_change_no_other_figure(runs):
    measured = [row for row in results(runs["measured"]) if "layer" not in row]
    for ours, plain in zip(measured, results(runs["plain"]), strict=True):
        assert ours == pytest.approx(plain, rel=1e-6)  # of another program, which rounds otherwise
