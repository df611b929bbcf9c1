"""Pairs on several devices, whose rows are all compared with each other."""

from tests.devices.simulated import run_on_devices


def test_rows_of_eight_devices_are_compared_as_on_one_device():
    differences = run_on_devices(8, "contrastive")
    assert len(differences) == 5
    assert max(differences.values()) <= 1e-10, differences
