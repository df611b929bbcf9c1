from typing import NamedTuple

import jax
import pytest

from jaxformer.train.goodput import PARTS, Goodput
from jaxformer.train.mfu import peak_flops


class Device(NamedTuple):
    device_kind: str
    platform: str


def test_a_known_accelerator_counts_with_its_data_sheet():
    peak = peak_flops([Device("TPU v5p", "tpu")] * 4, "bfloat16")
    assert peak.flops == 4 * 459e12
    assert peak.source == "4 × TPU v5p, data sheet"


def test_a_cpu_counts_with_what_it_measured_once_for_all_its_devices():
    one = peak_flops(jax.devices()[:1], "float32")
    assert 1e8 < one.flops < 1e14
    assert one.source == "cpu, measured with a float32 product"


def test_parts_of_the_time_add_up_to_the_whole(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    goodput = Goodput()

    def spend(part: str, seconds: float) -> None:
        with goodput.spent_on(part):
            now[0] += seconds

    spend("start", 1.0)
    spend("data", 0.5)
    spend("evaluation", 2.0)
    now[0] += 10.0
    spend("evaluation", 1.0)
    spend("saving", 0.25)
    assert goodput.seconds() == pytest.approx(
        {
            "start": 1.0,
            "compile": 0.0,
            "data": 0.5,
            "evaluation": 3.0,
            "saving": 0.25,
            "profile": 0.0,
            "steps": 10.0,
        }
    )
    assert goodput.paused == pytest.approx(3.25)
    table = goodput.table().splitlines()
    assert table[0] == "time 14.8 s, of which"
    assert len(table) == 1 + len(PARTS)
    assert "  steps           10.0 s  67.8%" in table
