"""What a train step would take on a TPU slice, found with the TPU compiler on any machine."""

import dataclasses
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxformer.config import Config
from jaxformer.data.vocabulary import tokenizer_of
from jaxformer.errors import UserError
from jaxformer.parallel.compiler import Options, described
from jaxformer.parallel.mesh import check_rows, data_shards, make_mesh
from jaxformer.parallel.rules import bytes_per_device
from jaxformer.plan.cost import read_cost
from jaxformer.plan.estimate import Estimate, estimate
from jaxformer.plan.topology import Slice, compile_only_devices, parse_slice
from jaxformer.terminal import in_bytes
from jaxformer.train.program import Program, make_program, weights
from jaxformer.train.sharding_report import sharding_report

FITS, DOES_NOT_FIT = 0, 1


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
    reference: int  # the weights of another model, such as a teacher's
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
    pipeline: str | None  # on a mesh with stages
    compiler_options: Options
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
    """Compile the train step for the slice and print what it takes; of every stage in turn, if the
    run has several. As JSON, that is an object a line.

    Returns:
        The exit code: 0 it fits, 1 it does not.

    Raises:
        UserError: no such topology, no TPU compiler, or a mesh that does not divide the model.
    """
    where, devices = slices_of(topology, slices)
    vocab_size, codes = vocab_size_of(config), []
    for number, stage in enumerate(config.stages):
        if len(config.stages) > 1 and not as_json:
            print(f"stage {number}, steps {stage.start:,} to {stage.until:,}:")
        codes.append(_plan_one(config.at(stage), where, devices, vocab_size, as_json=as_json))
    return max(codes)


def _plan_one(
    config: Config,
    where: Slice,
    devices: Sequence[jax.Device],
    vocab_size: int,
    *,
    as_json: bool,
) -> int:
    try:
        made = make_plan(config, where, devices, vocab_size)
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
        UserError: as for `plan`.
    """
    _, devices = slices_of(topology, slices)
    mesh = make_mesh(config.mesh.sizes, config.mesh.preset, devices)
    program = make_program(config, mesh, vocab_size_of(config))
    print(sharding_report(weights(program.abstract), program.model.vocab_size, config.mesh.table))


def make_plan(config: Config, where: Slice, devices: Sequence[jax.Device], vocab_size: int) -> Plan:
    """Compile the train step of `config` for `devices` and estimate its cost.

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
        pipeline=str(program.pipeline) if program.pipeline else None,
        compiler_options=program.compiler_options,
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


def slices_of(topology: str, slices: int) -> tuple[Slice, list[jax.Device]]:
    if slices < 1:
        raise UserError(f"--slices is {slices}; allowed: a whole number above 0")
    where = parse_slice(topology)
    return where, compile_only_devices(where, slices)


def vocab_size_of(config: Config) -> int:
    return config.model.vocab_size or tokenizer_of(config.data).vocab_size


def _memory(program: Program, compiled: jax.stages.Compiled, where: Slice) -> Memory:
    state, shardings = program.abstract, program.shardings
    parameters = bytes_per_device(weights(state), weights(shardings))
    stats: Any = compiled.memory_analysis()
    optimizer = bytes_per_device((state.opt_state, state.ema), (shardings.opt_state, shardings.ema))
    reference = bytes_per_device(state.reference, shardings.reference)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        reference=reference,
        batch=stats.argument_size_in_bytes - parameters - optimizer - reference,
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
    needed, available = error.needed, error.available
    return (
        f"does not fit: a chip needs {in_bytes(needed)} and has {in_bytes(available)}, "
        f"{in_bytes(needed - available)} too little; change one of:\n  " + "\n  ".join(changes)
    )


def describe(made: Plan) -> str:
    """A plan as a table for people."""
    memory, seconds = made.memory, made.seconds
    mesh = ", ".join(f"{axis} {size}" for axis, size in made.mesh.items())
    slices = f" × {made.slices} slices" if made.slices > 1 else ""
    lines = [
        ("topology", f"{made.topology}{slices}, {made.chips} chips; {mesh}"),
        ("model", f"{made.parameters:,} parameters, remat {made.remat}"),
        ("batch", f"{made.rows} rows, {made.tokens:,} tokens per step"),
        *([("pipeline", made.pipeline)] if made.pipeline else []),
        ("compiler", described(made.compiler_options)),
        (
            "memory",
            f"{in_bytes(memory.peak)} at the peak of {in_bytes(memory.capacity)} per chip",
        ),
        (
            "",
            f"parameters {in_bytes(memory.parameters)}, optimizer {in_bytes(memory.optimizer)}",
        ),
        *([("", f"the other model {in_bytes(memory.reference)}")] if memory.reference else []),
        ("", f"activations and other temporaries {in_bytes(memory.temporary)}"),
        ("FLOPs", f"{made.model_flops:.4g} per step by the model"),
        (
            "",
            f"{made.product_flops:.4g} in products and {made.kernel_flops:.4g} in kernels per chip",
        ),
        ("cycles", f"{made.cycles / 1e9:.3f} G per chip, as the compiler estimates"),
        ("network", f"{sum(part.bytes for part in seconds.traffic) / 1e9:.1f} GB to each chip"),
    ]
    for part in seconds.traffic:
        lines.append(
            (
                "",
                f"{part.kind} × {part.count}: {part.bytes / 1e9:.2f} GB, {ms(part.seconds)}, "
                f"waited for {ms(part.waited)}",
            )
        )
    if made.slices > 1 and parse_slice(made.topology).chip.dimensions == 3:
        # libtpu 0.0.50 drops `wrap` where `num_slices` is given.
        lines.append(("", "of several slices, the compiler does not know the rings: it gathers by"))
        lines.append(("", "all-reduces, which take twice the time that real slices need"))
    if made.endless_loops:
        loops = ", ".join(made.endless_loops)
        lines.append(("loops", f"counted once, as the program states no limit: {loops}"))
    lines += [
        (
            "step",
            f"{ms(made.step_seconds)}, bound by {made.bound}: compute {ms(seconds.compute)} + "
            f"waiting for the network {ms(seconds.waiting)}",
        ),
        ("", f"network in total {ms(seconds.network)}, memory {ms(seconds.memory)}"),
        ("speed", f"{made.tokens_per_second_per_chip:,.0f} tokens/s/chip, MFU {made.mfu:.1%}"),
        ("compiled", f"in {made.compile_seconds:.0f} s"),
    ]
    return "\n".join(f"{name:<11}{text}" for name, text in lines)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
