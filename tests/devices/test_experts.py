"""What experts send between devices."""

from tests.devices.simulated import run_on_devices


def test_rows_go_to_their_experts_and_return_forward_and_backward_and_no_more() -> None:
    found = run_on_devices(8, "experts")
    assert found["exchange"] == ["all-to-all"] * 4
    # A ring shows rows to every device and adds up what they make of them, and back.
    assert found["ring"] == ["all-gather"] * 2 + ["reduce-scatter"] * 2
    assert found["none"] == []


def test_experts_that_most_tokens_choose_take_them_in_further_rounds() -> None:
    found = run_on_devices(8, "crowded_experts")
    assert set(found) == {"exchange", "exchange of groups", "ring"}
    for name, case in found.items():
        assert case["rounds"] > 1, name  # an equal share and a quarter more would not do
        assert case["apart"] < 1e-13, name  # of float64: sums in another order
