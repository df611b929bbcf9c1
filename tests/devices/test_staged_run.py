import pytest

from tests.devices.simulated import run_on_devices


def test_a_run_in_stages_is_trained_evaluated_and_decoded_there_and_elsewhere():
    """Five layers, of which the last is a rest of the pattern."""
    seen = run_on_devices(4, "staged_run")
    assert "pipeline   2 stages, 8 micro-batches, bubble 11.1%" in seen["said"]
    assert "layers scanned (auto)" in seen["said"]
    assert seen["stages"]["loss"] == pytest.approx(seen["rows"]["loss"], rel=1e-6)
    assert seen["stages"]["text"] == seen["rows"]["text"]
