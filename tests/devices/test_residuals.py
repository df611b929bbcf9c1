"""Residuals on eight simulated devices, in stages, with rows and weights cut."""

import pytest

from tests.devices.simulated import run_on_devices


def test_losses_and_gradients_are_those_of_one_device() -> None:
    for name, metrics in run_on_devices(8, "residuals").items():
        one, eight = metrics["one"], metrics["eight"]
        assert one.keys() == eight.keys()
        assert eight == pytest.approx(one, rel=1e-4, nan_ok=True), name
        assert one["second grad_norm"] > 0.01
