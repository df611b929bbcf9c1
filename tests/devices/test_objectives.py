"""Tokens that see later ones, or rows of twice the length, on several devices."""

import pytest

from tests.devices.simulated import run_on_devices


@pytest.mark.parametrize("kind", ["masked_diffusion", "block_diffusion"])
def test_an_objective_on_several_devices_equals_one_device(kind):
    """Loss, gradients and evaluation, rows cut over two and four devices, and layers in stages; and
    the continuation of one short prompt."""
    differences = run_on_devices(4, "objectives", kind)
    assert len(differences) == 4
    assert max(differences.values()) <= 1e-10, differences
