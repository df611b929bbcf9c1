"""What a training step would take on a TPU slice: compiled by the TPU compiler, on any machine."""

import dataclasses
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import jax

from jaxformer.config import Config, TrainConfig
from jaxformer.data.progress import progress
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.parallel.cost import read_cost
from jaxformer.parallel.mesh import check_rows, data_shards, make_mesh
from jaxformer.parallel.plan import Estimate, estimate
from jaxformer.parallel.report import sharding_report
from jaxformer.parallel.rules import bytes_per_device
from jaxformer.parallel.topology import GIB, Slice, compile_only_devices, parse_slice
from jaxformer.schema import UserError
from jaxformer.train.program import Program, make_program, weights

FITS, DOES_NOT_FIT = 0, 1
BEST = 5  # variants that a search shows

# What a search tries.
REMAT = get_args(TrainConfig.model_fields["remat"].annotation)
TENSOR = (1, 2, 4, 8)
ROWS = (1, 2, 4, 8)  # on a data shard


class OutOfMemory(Exception):
    """The compiler found no way to lay the step out in a chip's memory."""

    def __init__(self, needed: float, available: float) -> None:
        self.needed = needed  # bytes on a chip
        self.available = available


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip."""

    parameters: int
    optimizer: int
    batch: int
    temporary: int  # activations, gradients, and whatever else lives within the step
    peak: int
    capacity: int


@dataclass(frozen=True)
class Plan:
    """A configuration on a slice, compiled. FLOPs, cycles and bytes are of one step on one chip."""

    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    remat: str
    rows: int
    tokens: int
    parameters: int
    memory: Memory
    model_flops: float  # of one step, on all chips
    product_flops: float
    kernel_flops: float
    cycles: float
    seconds: Estimate
    endless_loops: tuple[str, ...]
    step_seconds: float
    bound: str
    tokens_per_second_per_chip: float
    mfu: float
    compile_seconds: float


def plan(config: Config, topology: str, slices: int, *, as_json: bool) -> int:
    """Compile the train step for the slice and print what it takes.

    Returns:
        The exit code: 0 it fits, 1 it does not.

    Raises:
        UserError: no such topology, no TPU compiler, or a mesh that does not divide the model.
    """
    where, devices = _slices(topology, slices)
    try:
        made = make_plan(config, where, devices, _vocab_size(config))
    except OutOfMemory as error:
        sizes = dict(make_mesh(config.mesh.sizes, config.mesh.preset, devices).shape)
        if as_json:
            print(json.dumps({"fits": False, **vars(error)}))
        else:
            print(too_large(config, sizes, error, where))
        return DOES_NOT_FIT
    print(json.dumps({"fits": True, **dataclasses.asdict(made)}) if as_json else describe(made))
    return FITS


def show_sharding(config: Config, topology: str, slices: int) -> None:
    """Print what every chip would hold of each parameter; nothing is compiled.

    Raises:
        UserError: as `plan`.
    """
    _, devices = _slices(topology, slices)
    mesh = make_mesh(config.mesh.sizes, config.mesh.preset, devices)
    program = make_program(config, mesh, _vocab_size(config))
    print(sharding_report(weights(program.abstract)))


def search(config: Config, topology: str, slices: int, *, as_json: bool) -> int:
    """Compile the step with every rematerialisation, with several batches and meshes, and print
    the fastest.

    Returns:
        The exit code: 0 something fits, 1 nothing does.

    Raises:
        UserError: as `plan`.
    """
    where, devices = _slices(topology, slices)
    vocab_size = _vocab_size(config)
    candidates = list(_candidates(config, len(devices), slices))
    made, too_much, refused = [], set(), 0
    with progress("compiling", len(candidates)) as report:
        for done, candidate in enumerate(candidates):
            sizes, remat = candidate.mesh.sizes, candidate.train.remat
            key = (tuple(sizes.values()), remat)
            if key not in too_much:  # with fewer rows it was too large already
                try:
                    made.append(make_plan(candidate, where, devices, vocab_size))
                except OutOfMemory:
                    too_much.add(key)
                except UserError:
                    refused += 1
            report(done + 1)
    made.sort(key=lambda one: -one.tokens_per_second_per_chip)
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in made[:BEST]]))
    else:
        print(
            f"{len(candidates)} variants on {topology}: {len(made)} fit, {refused} do not divide "
            f"the model or the batch"
        )
        for one in made[:BEST]:
            print("  " + _one_line(one))
    return FITS if made else DOES_NOT_FIT


def make_plan(config: Config, where: Slice, devices: Sequence[jax.Device], vocab_size: int) -> Plan:
    """Compile the train step of `config` for `devices` and take its cost.

    Raises:
        OutOfMemory: it does not fit.
        UserError: the mesh does not divide the model or the batch.
    """
    train = config.train
    mesh = make_mesh(config.mesh.sizes, config.mesh.preset, devices)
    check_rows(mesh.shape, train.batch_size, train.accumulation, "train.batch_size")
    program = make_program(config, mesh, vocab_size)
    began = time.monotonic()
    try:
        compiled = program.compile(None).train_step
    except jax.errors.JaxRuntimeError as error:
        raise _out_of_memory(error) from error
    compile_seconds = time.monotonic() - began
    cost = read_cost(compiled.as_text() or "")
    seconds = estimate(cost, where, list(mesh.devices.flat))
    per_second = program.tokens_per_step / seconds.step / mesh.size
    return Plan(
        topology=where.name,
        slices=mesh.size // (where.chips * where.chip.devices_per_chip),
        chips=mesh.size // where.chip.devices_per_chip,
        mesh=dict(mesh.shape),
        remat=train.remat,
        rows=train.batch_size,
        tokens=program.tokens_per_step,
        parameters=program.num_parameters,
        memory=_memory(program, compiled, where),
        model_flops=program.flops_per_step,
        product_flops=cost.flops,
        kernel_flops=seconds.kernel_flops,
        cycles=cost.cycles,
        seconds=seconds,
        endless_loops=tuple(cost.endless),
        step_seconds=seconds.step,
        bound=seconds.bound,
        tokens_per_second_per_chip=per_second * where.chip.devices_per_chip,
        mfu=program.flops_per_step / (seconds.step * where.chip.peak_flops * mesh.size),
        compile_seconds=compile_seconds,
    )


def _slices(topology: str, slices: int) -> tuple[Slice, list[jax.Device]]:
    if slices < 1:
        raise UserError(f"--slices is {slices}; allowed: a whole number above 0")
    where = parse_slice(topology)
    return where, compile_only_devices(where, slices)


def _vocab_size(config: Config) -> int:
    return config.model.vocab_size or load_tokenizer(config.data.tokenizer).vocab_size


def _memory(program: Program, compiled: jax.stages.Compiled, where: Slice) -> Memory:
    state, shardings = program.abstract, program.shardings
    parameters = bytes_per_device(weights(state), weights(shardings))
    stats: Any = compiled.memory_analysis()
    optimizer = bytes_per_device((state.opt_state, state.ema), (shardings.opt_state, shardings.ema))
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        batch=stats.argument_size_in_bytes - parameters - optimizer,
        temporary=stats.temp_size_in_bytes,
        peak=stats.peak_memory_in_bytes,
        capacity=where.chip.memory,
    )


def _out_of_memory(error: jax.errors.JaxRuntimeError) -> Exception:
    """The compiler's refusal as `OutOfMemory`, any other error as it is."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    size = r"\(?([\d.]+)([KMGT])\)?"
    # libtpu 0.0.50 says the first, earlier ones the second.
    for words in (f"{size} exceeds available HBM {size}", f"Used {size} of {size} hbm"):
        if found := re.search(words, str(error)):
            needed, unit, available, other = found.groups()
            return OutOfMemory(float(needed) * units[unit], float(available) * units[other])
    return error


def too_large(config: Config, sizes: dict[str, int], error: OutOfMemory, where: Slice) -> str:
    """By how much a step does not fit, and what to change, the cheapest first."""
    train = config.train
    shards = data_shards(sizes)
    rows = train.batch_size // train.accumulation // shards
    changes = []
    if train.remat != "full":
        changes.append(f"train.remat=full (it is {train.remat}): a layer keeps only its input")
    if rows > 1:
        changes.append(
            f"train.accumulation={train.accumulation * rows} (it is {train.accumulation}): 1 row "
            f"at a time on a chip, not {rows}; or a smaller train.batch_size"
        )
    if sizes["data"] > 1:
        whole = sizes["fsdp"] * sizes["data"]
        changes.append(
            f"mesh.data=1 mesh.fsdp={whole} (fsdp is {sizes['fsdp']}): parameters and optimizer "
            f"cut into more parts"
        )
    changes.append(
        f"mesh.context={2 * sizes['context']} or mesh.tensor={2 * sizes['tensor']}: a chip takes "
        f"less of every row"
    )
    changes.append(f"a larger slice than {where.name} ({where.chips} chips)")
    needed, available = error.needed / GIB, error.available / GIB
    return (
        f"does not fit: a chip needs {needed:.1f} GiB and has {available:.1f} GiB, "
        f"{needed - available:.1f} GiB too little; change one:\n  " + "\n  ".join(changes)
    )


def _candidates(config: Config, devices: int, slices: int) -> Iterator[Config]:
    """Rematerialisations × meshes × rows, fewer rows first.

    `data` goes over slices; `stage`, `context` and `expert` stay as they are; `tensor` and `fsdp`
    share what is left.
    """
    given = config.mesh
    fixed = {
        "data": slices,
        "stage": max(1, given.stage or 1),
        "context": max(1, given.context or 1),
        "expert": max(1, given.expert or 1),
    }
    left = devices // math.prod(fixed.values())
    for remat, tensor, rows in itertools.product(REMAT, TENSOR, ROWS):
        if left % tensor == 0:
            sizes = {**fixed, "tensor": tensor, "fsdp": left // tensor}
            mesh = given.model_dump() | sizes
            batch = {"accumulation": 1, "batch_size": rows * data_shards(sizes)}
            train = {**config.train.model_dump(), "remat": remat, **batch}
            yield Config.model_validate(config.model_dump() | {"mesh": mesh, "train": train})


def describe(made: Plan) -> str:
    """A plan as a table for people."""
    memory, seconds = made.memory, made.seconds
    mesh = ", ".join(f"{axis} {size}" for axis, size in made.mesh.items())
    slices = f" × {made.slices} slices" if made.slices > 1 else ""
    lines = [
        ("topology", f"{made.topology}{slices}, {made.chips} chips; {mesh}"),
        ("model", f"{made.parameters:,} parameters, remat {made.remat}"),
        ("batch", f"{made.rows} rows, {made.tokens:,} tokens a step"),
        ("memory", f"{_gib(memory.peak)} at the peak of {_gib(memory.capacity)} a chip"),
        ("", f"parameters {_gib(memory.parameters)}, optimizer {_gib(memory.optimizer)}"),
        ("", f"activations and other temporaries {_gib(memory.temporary)}"),
        ("FLOPs", f"{made.model_flops:.4g} a step by the model"),
        (
            "",
            f"{made.product_flops:.4g} in products and {made.kernel_flops:.4g} in kernels on a "
            f"chip",
        ),
        ("cycles", f"{made.cycles / 1e9:.3f} G on a chip, as the compiler estimates"),
        ("network", f"{sum(part.bytes for part in seconds.traffic) / 1e9:.1f} GB to a chip"),
    ]
    for part in seconds.traffic:
        lines.append(
            (
                "",
                f"{part.kind} × {part.count}: {part.bytes / 1e9:.2f} GB, {_ms(part.seconds)}, "
                f"of it {_ms(part.blocking_seconds)} with nothing beside it",
            )
        )
    if made.slices > 1 and parse_slice(made.topology).chip.dimensions == 3:
        # libtpu 0.0.50 drops `wrap` where `num_slices` is given.
        lines.append(("", "of several slices the compiler does not know the rings: it gathers by"))
        lines.append(("", "all-reduces, in twice the time that a real slice takes"))
    if made.endless_loops:
        loops = ", ".join(made.endless_loops)
        lines.append(("loops", f"counted once, for want of a limit in the program: {loops}"))
    lines += [
        (
            "step",
            f"{_ms(made.step_seconds)}, bound by {made.bound}: compute {_ms(seconds.compute)} + "
            f"waiting for the network {_ms(seconds.blocking)}",
        ),
        ("", f"network in all {_ms(seconds.network)}, memory {_ms(seconds.memory)}"),
        ("speed", f"{made.tokens_per_second_per_chip:,.0f} tokens/s/chip, MFU {made.mfu:.1%}"),
        ("compiled", f"in {made.compile_seconds:.0f} s"),
    ]
    return "\n".join(f"{name:<11}{text}" for name, text in lines)


def _one_line(made: Plan) -> str:
    axes = " ".join(f"mesh.{axis}={size}" for axis, size in made.mesh.items())
    return (
        f"{made.tokens_per_second_per_chip:,.0f} tokens/s/chip, MFU {made.mfu:.1%}, "
        f"{_gib(made.memory.peak)}, {_ms(made.step_seconds)} bound by {made.bound}: "
        f"train.remat={made.remat} train.batch_size={made.rows} {axes}"
    )


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
