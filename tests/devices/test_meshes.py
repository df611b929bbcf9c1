"""Training on eight simulated devices."""

import numpy as np
import pytest

from tests.devices.simulated import run_on_devices

ALL = ["attention", "gated_delta", "hybrid"]
CASES = [(mixers, "rows") for mixers in ALL] + [("attention", "stages")]
CASES += [("chunks", "uncut"), ("experts", "experts"), ("routings", "routings")]
CASES += [("translator", "pairs")]


@pytest.mark.parametrize(("mixers", "meshes"), CASES)
def test_steps_on_eight_devices_equal_those_on_one(mixers, meshes):
    """Five, with their first gradient, and a sixth after the checkpoints of one device, of
    another mesh, and of its own."""
    seen = run_on_devices(8, "eight_devices", mixers, meshes)
    one = seen.pop("one")
    counts = {"rows": 5, "stages": 4, "uncut": 4, "experts": 7, "routings": 3, "pairs": 3}
    assert len(seen) == counts[meshes]
    for name, mesh in seen.items():
        np.testing.assert_allclose(mesh["losses"], one["losses"], rtol=1e-5, err_msg=name)
        for measured, rows in one["layers"].items():
            of_layers = mesh["layers"][measured]
            np.testing.assert_allclose(of_layers, rows, rtol=1e-4, err_msg=f"{name} {measured}")
        for path, gradient in one["gradients"].items():
            atol = 1e-5 * np.max(np.abs(gradient))
            ours = mesh["gradients"][path]
            np.testing.assert_allclose(ours, gradient, rtol=0, atol=atol, err_msg=f"{name} {path}")
        np.testing.assert_allclose(mesh["frozen"], one["frozen"], rtol=0, atol=1e-7, err_msg=name)
        assert mesh["initial"] == one["initial"], f"another start on {name}"
        for saved_on, sixth in mesh["resumed"].items():
            expected = one["resumed"]["one"]
            np.testing.assert_allclose(sixth, expected, rtol=1e-5, err_msg=f"{saved_on} {name}")
    assert (mixers == "experts") == bool(np.any(one["frozen"]))  # biases that have moved
    if mixers == "attention":
        local = seen["fsdp"]["local"]
        kernels = {path: shape for path, shape in local.items() if path.endswith("query/kernel")}
        assert len(kernels) == 3  # the parameter and AdamW's two moments
        part, whole = {
            "rows": ((1, 32 // 8, 4, 8), (1, 32, 4, 8)),
            "stages": ((4 // 2, 32 // 4, 4, 8), (4, 32, 4, 8)),
        }[meshes]
        assert set(map(tuple, kernels.values())) == {part}
        assert {tuple(one["local"][path]) for path in kernels} == {whole}
