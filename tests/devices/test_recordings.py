"""Recordings and CTC on several devices."""

from tests.devices.simulated import run_on_devices


def test_recordings_on_several_devices_equal_one_device():
    """Loss with masks, gradients and evaluation."""
    differences = run_on_devices(4, "recordings")
    assert len(differences) == 3
    assert max(differences.values()) <= 1e-10, differences
