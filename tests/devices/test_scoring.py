"""Evaluation suites on eight simulated devices."""

import numpy as np

from tests.devices.simulated import run_on_devices


def test_scores_and_tokens_on_eight_devices_are_those_on_one():
    seen = run_on_devices(8, "scoring")
    one = seen.pop("one")
    assert set(seen) == {"data", "fsdp", "three", "context", "all"}
    for name, mesh in seen.items():
        np.testing.assert_allclose(mesh["scores"], one["scores"], rtol=1e-5, err_msg=name)
        assert mesh["tokens"] == one["tokens"], name
