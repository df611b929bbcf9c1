"""Traces as accelerators write them, made by hand: no accelerator is here."""

import pytest
from jax.profiler import ProfileData

from jaxformer.errors import UserError
from jaxformer.profile.trace import read_trace

OPCODES = {"fusion.1": "fusion", "while.2": "while", "dot.3": "dot", "all-reduce.4": "all-reduce"}


def space(*planes: str) -> bytes:
    return ProfileData.text_proto_to_serialized_xspace("\n".join(planes))


def plane(name: str, lines: dict[str, list[tuple]], names: dict[int, str]) -> str:
    """An event is (number of its name, start and length in ns, its statistics)."""
    stats = {"step_num": 1, "hlo_op": 2, "hlo_module": 3}
    text = "".join(
        "lines { name: '" + line + "' " + " ".join(map(event, events)) + "}\n"
        for line, events in lines.items()
    )
    for number, known in names.items():
        text += f"event_metadata {{ key: {number} value {{ id: {number} name: '{known}' }} }}\n"
    for known, number in stats.items():
        text += f"stat_metadata {{ key: {number} value {{ id: {number} name: '{known}' }} }}\n"
    return f"planes {{ name: '{name}'\n{text}}}"


def event(given: tuple) -> str:
    number, start, length, *stats = given
    return (
        f"events {{ metadata_id: {number} offset_ps: {start * 1000} duration_ps: {length * 1000} "
        + " ".join(f"stats {{ metadata_id: {key} {value} }}" for key, value in stats)
        + " }"
    )


HOST = plane("/host:CPU", {"python": [(1, 0, 100, (1, "int64_value: 7"))]}, {1: "train"})


def of_gpu(name: str, start: int, length: int, module: str = "jit_step") -> tuple:
    return (1, start, length, (2, f"str_value: '{name}'"), (3, f"str_value: '{module}'"))


def test_kernels_of_a_gpu_count_by_their_instruction_over_its_streams():
    streams = {
        "Stream #1": [of_gpu("dot.3", 10, 20), of_gpu("dot.3", 40, 20, "jit_other")],
        "Stream #2": [of_gpu("all-reduce.4", 20, 30)],
    }
    planes = [plane(f"/device:GPU:{number}", streams, {1: "a kernel"}) for number in range(2)]
    trace = read_trace(space(HOST, *planes), "jit_step", OPCODES, "train")
    assert trace.steps == {7: 100}
    assert trace.devices == 2
    assert trace.operations == {"dot.3": 40, "all-reduce.4": 60}
    assert trace.busy == 40


def test_operations_of_a_tpu_are_named_by_their_text_and_count_once():
    names = {1: "%while.2 = (f32[2]) while(%x)", 2: "%fusion.1 = f32[2] fusion(%y)", 3: "7"}
    inside = [(1, 0, 50), (2, 5, 10), (2, 20, 10), (2, 60, 5)]
    lines = {"Steps": [(3, 0, 60)], "XLA Ops": inside, "Source code": [(2, 0, 60)]}
    tpu = plane("/device:TPU:0", lines, names)
    trace = read_trace(space(HOST, tpu), "jit_step", OPCODES, "train")
    assert trace.operations == {"fusion.1": 25}
    assert trace.busy == 25


def test_an_operation_within_another_is_not_counted_twice():
    stream = {"Stream #1": [of_gpu("fusion.1", 0, 30), of_gpu("dot.3", 10, 5)]}
    gpu = plane("/device:GPU:0", stream, {1: "a kernel"})
    trace = read_trace(space(HOST, gpu), "jit_step", OPCODES, "train")
    assert trace.operations == {"fusion.1": 25, "dot.3": 5}


def test_a_trace_without_steps_or_operations_is_refused():
    gpu = plane("/device:GPU:0", {"Stream #1": [of_gpu("dot.3", 0, 5)]}, {1: "a kernel"})
    with pytest.raises(UserError, match="the trace has no step"):
        read_trace(space(gpu), "jit_step", OPCODES, "train")
    with pytest.raises(UserError, match="the trace has no operation of jit_step"):
        read_trace(space(HOST), "jit_step", OPCODES, "train")
