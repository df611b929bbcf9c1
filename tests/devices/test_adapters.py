"""Adapters on four simulated devices."""

import numpy as np

from tests.devices.simulated import run_on_devices


def test_adapters_train_on_four_devices_as_on_one():
    """Dropout too, but where rows are cut: there every piece has a key of its own."""
    seen = run_on_devices(4, "adapters")
    for name, other in (("tensor", "one"), ("context, without dropout", "without dropout")):
        mesh, one = seen[name], seen[other]
        np.testing.assert_allclose(mesh["losses"], one["losses"], rtol=1e-5, err_msg=name)
    cut, whole = (np.array(seen[name]["losses"])[:, 0] for name in ("context", "without dropout"))
    assert cut[2] != whole[2]
    np.testing.assert_allclose(cut, whole, rtol=0.01)  # adapters say little yet

    local = seen["tensor"]["local"]
    query = "stack/groups/layer_1/mixer/query/lora"
    assert local[f"{query}/a"] == [1, 16, 4]  # [layers, d_model / fsdp, rank]
    assert local[f"{query}/b"] == [1, 4, 2, 8]  # [layers, rank, heads / tensor, head_dim]
