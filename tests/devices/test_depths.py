"""Models whose depth is not fixed, on eight simulated devices."""

import pytest

from tests.devices.simulated import run_on_devices


def test_losses_and_gradients_are_those_of_one_device() -> None:
    for name, metrics in run_on_devices(8, "depths").items():
        one, eight = metrics["one"], metrics["eight"]
        assert one.keys() == eight.keys()
        assert eight == pytest.approx(one, rel=2e-5, nan_ok=True), name
        assert one["grad_norm"] > 0.01
