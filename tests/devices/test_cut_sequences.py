"""A sequence cut over devices equals the whole one."""

import pytest
from contracts.cases import CASES

from tests.devices.simulated import run_on_devices


@pytest.mark.parametrize("part", range(4))
def test_a_sequence_cut_over_four_devices_equals_the_whole_one(part: int) -> None:
    """Outputs and gradients, of documents that end inside a device's piece and go on over two."""
    names = sorted(CASES)[part::4]
    differences = run_on_devices(4, "cut_sequences", *names)
    assert sorted(differences) == names
    assert max(differences.values()) <= 1e-10, differences


def test_rows_of_encoders_cut_over_four_devices_equal_the_whole_ones() -> None:
    """The ring of keys without an order, and rows that are reversed across devices."""
    names = ("encoder_attention", "encoder_window", "bidirectional_retention")
    differences = run_on_devices(4, "cut_sequences", *names)
    assert differences.keys() == set(names)
    assert max(differences.values()) <= 1e-10, differences


def test_rope_that_follows_the_length_of_documents_knows_it_across_devices() -> None:
    differences = run_on_devices(4, "cut_sequences", "attention_dynamic")
    assert differences["attention_dynamic"] <= 1e-10
