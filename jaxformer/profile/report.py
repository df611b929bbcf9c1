"""`jaxformer profile`: where the time of a run's steps went."""

import dataclasses
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from jaxformer.checkpoint.run_directory import RunDirectory, locate
from jaxformer.config.loading import load_config
from jaxformer.errors import UserError
from jaxformer.plan.hlo import parse
from jaxformer.profile.parts import parts_of, scope_of
from jaxformer.profile.trace import read_trace
from jaxformer.run_files import PROGRAM, TRACES
from jaxformer.train.profiling import ANNOTATION

LARGEST = 10  # operations that are listed
SCOPE_WORDS = 4  # of an operation's scope, the last ones, in the table


@dataclass(frozen=True)
class Part:
    """Milliseconds per step and device, and the share of all operations."""

    name: str
    milliseconds: float
    share: float


@dataclass(frozen=True)
class Operation:
    """An instruction of the compiled step; its time is as a part's."""

    name: str
    opcode: str
    part: str
    scope: str
    milliseconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """What a process's trace says. `operations` are milliseconds per step and device, in all; on a
    CPU they are added over its threads. `busy` is the share of the steps' time in which an
    operation ran."""

    folder: str
    process: int
    devices: int
    steps: dict[int, float]  # milliseconds by number
    operations: float
    busy: float
    parts: tuple[Part, ...]
    largest: tuple[Operation, ...]


def report(run: Path, process: int, *, as_json: bool) -> None:
    """Print the newest profile of a run.

    Raises:
        UserError: the run has none, or none of this process.
    """
    found = newest_profile(run, process)
    print(json.dumps(dataclasses.asdict(found)) if as_json else describe(found))


def newest_profile(run: Path, process: int = 0) -> Profile:
    """The profile of a run that begins at the latest step."""
    directory, _ = locate(run)
    folder = _newest(directory)
    file = folder / TRACES / f"process_{process}.xplane.pb"
    if not file.exists():
        there = sorted(each.name.split(".")[0] for each in file.parent.iterdir())
        raise UserError(f"{folder} has no trace of process {process}; it has {', '.join(there)}")
    model = load_config(directory.config).model
    text = gzip.decompress((folder / PROGRAM).read_bytes()).decode()
    program = parse(text)
    instructions = {
        name: each for part in program.values() for name, each in part.instructions.items()
    }
    trace = read_trace(
        file.read_bytes(),
        text.removeprefix("HloModule ").partition(",")[0],
        {name: each.opcode for name, each in instructions.items()},
        ANNOTATION,
    )
    parts = parts_of(program, model)
    per_step = {
        name: time / 1e6 / len(trace.steps) / trace.devices
        for name, time in trace.operations.items()
    }
    total = sum(per_step.values())
    largest = sorted(per_step, key=per_step.__getitem__, reverse=True)[:LARGEST]
    return Profile(
        folder=str(folder),
        process=process,
        devices=trace.devices,
        steps={step: time / 1e6 for step, time in sorted(trace.steps.items())},
        operations=total,
        busy=trace.busy / sum(trace.steps.values()),
        parts=_summed(per_step, parts),
        largest=tuple(
            Operation(
                name,
                instructions[name].opcode,
                parts[name],
                scope_of(instructions[name]),
                per_step[name],
                per_step[name] / total,
            )
            for name in largest
        ),
    )


def _newest(directory: RunDirectory) -> Path:
    folder = directory.profile
    steps = [
        int(each.name)
        for each in (folder.iterdir() if folder.is_dir() else ())
        if each.name.isdecimal() and (each / PROGRAM).exists()
    ]
    if not steps:
        raise UserError(
            f"{directory.path} has no profile; train on for a few steps to make one: "
            f"jaxformer train {directory.config} 'train.profile={{start: STEP, steps: 3}}', where "
            f"STEP is one that the run has still before it"
        )
    return folder / str(max(steps))


def _summed(per_step: dict[str, float], parts: dict[str, str]) -> tuple[Part, ...]:
    times: dict[str, float] = {}
    for name, time in per_step.items():
        times[parts[name]] = times.get(parts[name], 0.0) + time
    total = sum(times.values())
    ordered = sorted(times.items(), key=lambda each: -each[1])
    return tuple(Part(name, time, time / total) for name, time in ordered)


def describe(profile: Profile) -> str:
    """The tables."""
    steps = ", ".join(f"{step:,}: {time:.1f} ms" for step, time in profile.steps.items())
    device = f"{profile.devices} device{'s' if profile.devices > 1 else ''}"
    width = max(len(part.name) for part in profile.parts)
    rows = [
        f"  {part.name:<{width}} {part.milliseconds:>10.2f} ms {part.share:>7.1%}"
        for part in profile.parts
    ]
    largest = [
        f"  {each.milliseconds:>10.2f} ms {each.share:>7.1%}  {each.name}  ({_short(each.scope)})"
        for each in profile.largest
    ]
    return "\n".join(
        [
            f"{profile.folder}, process {profile.process}, {device}",
            f"steps {steps}; an operation runs {profile.busy:.1%} of that time",
            "operations per step and device, by the part of the model:",
            *rows,
            "the largest operations:",
            *largest,
        ]
    )


def _short(scope: str) -> str:
    return "/".join(scope.split("/")[-SCOPE_WORDS:]) or "no scope"
