"""What a trace of jax's profiler says of the steps of a program, and of its operations."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from jaxformer.errors import UserError

BODIES = ("while", "conditional", "call")  # their time is that of the operations in them


@dataclass(frozen=True)
class Trace:
    """Times of one process, in nanoseconds."""

    steps: dict[int, float]  # by their number: from its launch to the end of its work
    operations: dict[str, float]  # over all steps and devices; on a CPU, over all threads
    busy: float  # in which an operation ran, mean over the devices
    devices: int


class _Run(NamedTuple):
    """An operation that ran once."""

    name: str
    start: float
    end: float
    device: str


def read_trace(data: bytes, program: str, opcodes: dict[str, str], annotation: str) -> Trace:
    """The trace in an `xplane.pb`.

    Args:
        program: the name of the compiled program whose operations count.
        opcodes: of its instructions, by their names.
        annotation: the name of a step.

    Raises:
        UserError: it has no step, or no operation of the program.
    """
    profile = ProfileData.from_serialized_xspace(data)
    steps = {
        int(dict(event.stats)["step_num"]): event.duration_ns
        for plane in profile.planes
        for line in plane.lines
        for event in line.events
        if event.name == annotation
    }
    operations: defaultdict[str, float] = defaultdict(float)
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for runs in _lines(profile, program, opcodes):
        for name, time in _own_times(runs, opcodes).items():
            operations[name] += time
        for run in runs:
            if opcodes[run.name] not in BODIES:
                spans[run.device].append((run.start, run.end))
    if not steps or not operations:
        missing = f"operation of {program}" if steps else "step"
        raise UserError(f"the trace has no {missing}; take another: train.profile.start=STEP")
    busy = sum(map(_covered, spans.values())) / len(spans)
    return Trace(steps, operations, busy, len(spans))


def _lines(profile: ProfileData, program: str, opcodes: Collection[str]) -> Iterator[list[_Run]]:
    """The operations of the program on each line: a thread of a CPU, a stream of a GPU, or a
    TPU's core."""
    planes = list(profile.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    of_host = [plane for plane in planes if plane.name == "/host:CPU"]
    for plane in devices or of_host:
        lines = list(plane.lines)
        # The other lines of a TPU tell the same once more: its steps, modules and sources.
        for line in [each for each in lines if each.name == "XLA Ops"] or lines:
            runs = []
            for event in line.events:
                stats = dict(event.stats)
                name = _instruction(event.name, stats)
                if name not in opcodes or stats.get("hlo_module", program) != program:
                    continue
                device = plane.name if devices else str(stats.get("device_ordinal", 0))
                runs.append(_Run(name, event.start_ns, event.end_ns, device))
            yield runs


def _instruction(event: str, stats: dict[str, Any]) -> str:
    """The name of the instruction; on a TPU an event's name is its whole text."""
    if "hlo_op" in stats:
        return str(stats["hlo_op"])
    text = re.match(r"%?([\w.\-]+) = ", event)
    return text[1] if text else ""


def _own_times(runs: list[_Run], opcodes: dict[str, str]) -> dict[str, float]:
    """Nanoseconds of each operation without those that it contains."""
    times: defaultdict[str, float] = defaultdict(float)
    around: list[_Run] = []
    for run in sorted(runs, key=lambda run: (run.start, -run.end)):
        while around and around[-1].end <= run.start:
            around.pop()
        length = run.end - run.start
        if around and run.end <= around[-1].end:
            times[around[-1].name] -= length
        times[run.name] += length
        around.append(run)
    return {name: time for name, time in times.items() if opcodes[name] not in BODIES}


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
