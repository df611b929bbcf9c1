"""The fastest way to train on a TPU slice, found with few compilations, which take minutes each."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax

from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.parallel.mesh import data_shards, make_mesh
from jaxformer.parallel.rules import bytes_per_device
from jaxformer.plan.plan import (
    DOES_NOT_FIT,
    FITS,
    OutOfMemory,
    Plan,
    make_plan,
    ms,
    slices_of,
    vocab_size_of,
)
from jaxformer.terminal import in_bytes, say
from jaxformer.train.interrupt import STOPPED, Interrupted, StopSignal
from jaxformer.train.program import make_program

TENSOR = (1, 2, 4, 8)
REMAT = ("full", "dots", "none")  # from the least memory to the most
ROWS = (8, 4, 2, 1)  # per data shard
BEST = 5  # variants that are shown at the end


@dataclass(frozen=True)
class Variant:
    """A mesh, a rematerialisation and the rows per data shard."""

    sizes: dict[str, int]
    remat: str
    rows: int

    def of(self, config: Config) -> Config:
        mesh = config.mesh.model_dump() | self.sizes
        batch = {"accumulation": 1, "batch_size": self.rows * data_shards(self.sizes)}
        train = config.train.model_dump() | {"remat": self.remat} | batch
        return Config.model_validate(config.model_dump() | {"mesh": mesh, "train": train})

    def __str__(self) -> str:
        return f"{_listed(self.sizes)}, remat {self.remat}, {self.rows} rows per shard"


def search(config: Config, topology: str, slices: int, *, as_json: bool) -> int:
    """Compile the step with several meshes, and with the most rows that fit for every
    rematerialisation; print each result as it comes, and the fastest at the end or after Ctrl-C. Of
    a run's stages, it plans the one with the longest rows.

    Returns:
        The exit code: 0 something fits, 1 nothing does, 75 stopped by a signal.

    Raises:
        UserError: as for `plan`.
    """
    where, devices = slices_of(topology, slices)
    vocab_size = vocab_size_of(config)
    longest = max(config.stages, key=lambda stage: stage.data.sequence_length)
    if len(config.stages) > 1:
        say(f"planning steps {longest.start:,} to {longest.until:,}, which have the longest rows")
    config = config.at(longest)
    made: list[Plan] = []
    code = DOES_NOT_FIT
    with StopSignal() as stop:

        def compile_one(variant: Variant) -> Plan:
            return stop.wait_for(lambda: make_plan(variant.of(config), where, devices, vocab_size))

        try:
            for sizes in meshes(config, len(devices), slices):
                try:
                    first = Variant(sizes, REMAT[0], ROWS[0]).of(config)
                    state = _state(first, devices, vocab_size)
                    for one in walk(sizes, state, where.chip.memory, compile_one):
                        made.append(one)
                        code = FITS
                except UserError as error:
                    say(f"{_listed(sizes)}: left out: {error}")
        except Interrupted as signal:
            say(f"{signal}: the search ends here")
            code = STOPPED
    made.sort(key=lambda one: -one.tokens_per_second_per_chip)
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in made[:BEST]]))
    else:
        print(f"{len(made)} variants that fit on {topology}, the fastest first:")
        for one in made[:BEST]:
            print("  " + one_line(one))
    return code


def meshes(config: Config, devices: int, slices: int) -> Iterator[dict[str, int]]:
    """Sizes to try: `data` spans the slices, `stage`, `context` and `expert` stay as they are, and
    `tensor` and `fsdp` share what is left."""
    given = config.mesh
    fixed = {
        "data": slices,
        "stage": max(1, given.stage or 1),
        "context": max(1, given.context or 1),
        "expert": max(1, given.expert or 1),
    }
    left = devices // math.prod(fixed.values())
    for tensor in TENSOR:
        if left % tensor == 0:
            yield fixed | {"tensor": tensor, "fsdp": left // tensor}


def walk(
    sizes: dict[str, int],
    state: float,
    memory: float,
    compile_one: Callable[[Variant], Plan],
    report: Callable[[str], None] = say,
) -> Iterator[Plan]:
    """The plans of one mesh with the most rows that fit for each rematerialisation; reports what it
    leaves out.

    More rows, or less rematerialisation, need at least as much memory, so a variant that does not
    fit excludes all beyond it; where one fits, fewer rows are no faster. So the walk starts with
    the most rows and the most rematerialisation; it goes to fewer rows after a variant that does
    not fit, and to less rematerialisation after one that does.

    Args:
        state: bytes per chip of parameters and optimizer, which rows do not change.
        memory: bytes of a chip.
    """
    if state > memory:
        report(
            f"{_listed(sizes)}: left out: parameters and optimizer alone take {in_bytes(state)} of "
            f"{in_bytes(memory)}"
        )
        return
    remats, rows = list(REMAT), list(ROWS)
    while remats and rows:
        variant = Variant(sizes, remats[0], rows[0])
        report(f"{variant}: compiling")
        try:
            made = compile_one(variant)
        except OutOfMemory as error:
            report(
                f"{variant}: does not fit, it needs {in_bytes(error.needed)} of {in_bytes(memory)}"
            )
            tried = rows.pop(0)
            _leave_out(report, remats[1:], [tried], "it would keep more")
            # The state stays, and the rest shrinks at most as the rows do.
            while rows and state + (error.needed - state) * rows[0] / tried > memory:
                least = state + (error.needed - state) * rows[0] / tried
                _leave_out(report, remats, [rows.pop(0)], f"it needs at least {in_bytes(least)}")
        else:
            report(f"{variant}: {one_line(made)}")
            _leave_out(report, [remats.pop(0)], rows[1:], "it is no faster with fewer rows")
            yield made


def _leave_out(
    report: Callable[[str], None], remats: Sequence[str], rows: Sequence[int], reason: str
) -> None:
    if remats and rows:
        counts = ", ".join(map(str, rows))
        report(f"  left out: remat {' and '.join(remats)} with {counts} rows: {reason}")


def _state(config: Config, devices: Sequence[jax.Device], vocab_size: int) -> int:
    mesh = make_mesh(config.mesh.sizes, config.mesh.preset, devices)
    program = make_program(config, mesh, vocab_size)
    return bytes_per_device(program.abstract, program.shardings)


def one_line(made: Plan) -> str:
    """A plan with the overrides that lead to it."""
    axes = " ".join(f"mesh.{axis}={size}" for axis, size in made.mesh.items())
    return (
        f"{made.tokens_per_second_per_chip:,.0f} tokens/s/chip, MFU {made.mfu:.1%}, "
        f"{in_bytes(made.memory.peak)}, {ms(made.step_seconds)} bound by {made.bound}: "
        f"train.remat={made.remat} train.batch_size={made.rows} {axes}"
    )


def _listed(sizes: dict[str, int]) -> str:
    return " ".join(f"{axis} {size}" for axis, size in sizes.items())
