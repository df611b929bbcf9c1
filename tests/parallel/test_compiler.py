from typing import NamedTuple

import pytest

from jaxformer.parallel.compiler import SPARSE_CORES, TPU, compiler_options, described


class Device(NamedTuple):
    platform: str
    device_kind: str


def test_collectives_are_left_to_sparse_cores_where_there_are_some():
    assert compiler_options(Device("tpu", "TPU v5")) == TPU | SPARSE_CORES
    assert compiler_options(Device("tpu", "TPU v5 lite")) == TPU
    assert compiler_options(Device("cpu", "cpu")) == {}
    assert described(TPU) == "2 options (LIBTPU_INIT_ARGS takes precedence)"
    assert described(TPU | SPARSE_CORES).startswith("12 options, collectives by the SparseCores (")


@pytest.mark.parametrize("value", ["=false", "=true", ""])
def test_what_the_environment_says_is_not_said_otherwise(monkeypatch, value):
    offload = "xla_tpu_enable_sparse_core_collective_offload_all_gather"
    assert offload in SPARSE_CORES
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--xla_other=1 --{offload}{value}")
    kept = compiler_options(Device("tpu", "TPU v6 lite"))
    assert kept == {name: value for name, value in (TPU | SPARSE_CORES).items() if name != offload}
