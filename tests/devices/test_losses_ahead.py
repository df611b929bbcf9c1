"""Losses of several tokens ahead do not depend on the mesh."""

from tests.devices.simulated import run_on_devices


def test_losses_ahead_on_several_meshes_are_those_of_one_device() -> None:
    """Rows cut over devices, where the tokens ahead are another's; stages; and split weights."""
    differences = run_on_devices(4, "losses_ahead")
    assert set(differences) == {"context", "stages", "tensor"}
    assert max(differences.values()) <= 1e-10, differences
