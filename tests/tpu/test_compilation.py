"""Train steps compiled for TPU chips that are not there."""

import re
from collections import Counter

import jax
import pytest
from contracts.cases import CASES, ENCODERS
from jax.experimental import topologies

from jaxformer.config import Config
from jaxformer.parallel.mesh import make_mesh
from jaxformer.plan.cost import read_cost
from jaxformer.plan.estimate import kernel_flops
from jaxformer.plan.topology import compile_only_devices, parse_slice
from jaxformer.train.program import Program, make_program

# What the cache keeps for a chip is only read by a process that has one.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}
LENGTH = 384
KINDS = sorted({case.config.kind for case in CASES.values()})
OF_ENCODERS = ["encoder_attention", "encoder_attention_window", "bidirectional_mamba2"]


@pytest.fixture(scope="module")
def chips() -> list[jax.Device]:
    pytest.importorskip("libtpu", reason="the TPU compiler is an extra: pip install '.[tpu]'")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        return topologies.get_topology_desc(platform="tpu", topology_name="v5:2x2x1").devices


@pytest.fixture(scope="module")
def chips_of_a_cube(chips) -> list[jax.Device]:
    """Sixteen of v5p."""
    return compile_only_devices(parse_slice("v5p-32"), 1)


def make_program_on(
    chips: list[jax.Device], mesh: dict, objective=None, length=LENGTH, **model
) -> Program:
    config = Config.model_validate(
        {
            "model": {"num_layers": mesh.get("stage", 1), **model},
            "data": {"sequence_length": length},
            "train": {
                "batch_size": max(4, mesh.get("fsdp", 1)),
                "unroll_layers": False,
                "precision": "bfloat16",
                "remat": "dots",
                "objective": objective or {"kind": "next_token"},
            },
            "mesh": {"data": 1, **mesh},
        }
    )
    return make_program(config, make_mesh(config.mesh.sizes, devices=chips), vocab_size=32)


def test_a_torus_gathers_a_layer_twice_scatters_its_gradient_once_and_computes_meanwhile(chips):
    mixer = {"kind": "attention", "num_heads": 8}
    model = {
        "num_layers": 3,
        "d_model": 1024,
        "mixer": mixer,
        "ffn": {"kind": "swiglu", "d_hidden": 4096},
    }
    torus = compile_only_devices(parse_slice("v5p-128"), 1)
    text = make_program_on(torus, {"fsdp": 64}, length=1024, **model).compile(None).train_step
    cost = read_cost(text.as_text())
    large: dict[str, Counter] = {"all-gather": Counter(), "reduce-scatter": Counter()}
    for collective, times in cost.collectives.items():
        if collective.bytes >= 2**20 and collective.kind != "all-to-all":
            large[collective.kind][collective.bytes, len(collective.group)] += times
    # In bfloat16: four matrices of attention and three of the FFN in each of three layers.
    matrices = {(2 * 1024 * 1024, 64): 4 * 3, (2 * 1024 * 4096, 64): 3 * 3}
    assert large["reduce-scatter"] == matrices
    assert large["all-gather"] == {size: 2 * count for size, count in matrices.items()}
    together = sum(times for flight, times in cost.flights.items() if len(flight) > 2)
    assert together >= 3 * 7  # of a layer's backward pass at the least


def test_grouped_attention_is_one_kernel_a_device_without_gathers_or_repeated_keys(chips):
    mixer = {"kind": "attention", "num_heads": 8, "num_kv_heads": 2, "head_dim": 64}
    program = make_program_on(chips, {"fsdp": 2, "tensor": 2}, d_model=64, mixer=mixer, ffn=None)
    assert program.kernels == ("attention splash",)
    lines = program.compile(None).train_step.as_text().splitlines()
    calls = [line for line in lines if 'custom_call_target="tpu_custom_call"' in line]
    forward, backward = (next(line for line in calls if name in line) for name in ("fwd", "dkv"))
    assert len(calls) == 2  # the backward pass keeps what the forward pass gave
    # Of 4 rows, 8 heads and 2 key-value heads, a device has 2, 4 and 1.
    assert f"bf16[2,4,{LENGTH},64]" in forward
    assert backward.count(f"bf16[2,1,{LENGTH},64]") == 4  # keys, values and their gradients
    gathers = [line for line in lines if re.search(r" all-(gather|to-all)(-start)?\(", line)]
    of_mixer = [line for line in gathers if "/mixer/" in line]
    assert of_mixer and not [line for line in of_mixer if f"{LENGTH}" in line.split("(")[0]]


@pytest.mark.parametrize("axis", ["fsdp", "context", "stage"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_mixer_compiles(chips, kind, axis):
    case = next(case for case in CASES.values() if case.config.kind == kind)
    model = {"d_model": 12, "mixer": case.config, "positions": case.scheme, "ffn": None}
    make_program_on(chips, {axis: 4}, **model).compile(None)


@pytest.mark.parametrize("axis", ["fsdp", "context"])
@pytest.mark.parametrize("name", OF_ENCODERS)
def test_encoders_compile(chips, name, axis):
    case = ENCODERS[name]
    model = {"d_model": 12, "mixer": case.config, "positions": case.scheme, "order": "full"}
    make_program_on(chips, {axis: 4}, **model, ffn=None).compile(None)


def test_chunks_compile_and_their_tokens_stay_with_their_rows(chips):
    mixer = {"kind": "attention", "num_heads": 2}
    outer = [{"mixer": {"kind": "min_gru"}}]
    inputs = {"kind": "chunks", "encoder": outer, "decoder": outer, "ratio": 4.0}
    model = {"d_model": 16, "mixer": mixer, "ffn": None, "inputs": inputs}
    lines = make_program_on(chips, {"fsdp": 4}, **model).compile(None).train_step.as_text()
    moved = re.findall(r"= (\S+) all-(?:gather|to-all)(?:-start)?\(", lines)
    of_rows = (f",{LENGTH}", f",{LENGTH // 2}")  # their tokens, and their most chunks
    assert moved and not [shape for shape in moved if any(size in shape for size in of_rows)]


DEPTHS = {
    "mixture": {"kind": "mixture", "capacity": 0.25},
    # XLA for TPUs refuses an instruction of the ring of keys with three turns: docs/adaptive.md.
    "recursion": {"kind": "recursion", "turns": 2},
    "loop": {"kind": "loop", "before": 1, "turns": 2, "halting": {"kind": "act"}},
    "ponder": {"kind": "loop", "turns": 2, "halting": {"kind": "ponder"}},
    "exits": {"kind": "exits"},
}
OBJECTIVES = {
    "masked_diffusion": {},
    "block_diffusion": {},
    "any_order": {},
    "prefix": {},
    "token_dropout": {},
    "multi_token": {"further": {"kind": "modules", "count": 2}},
}


def adaptive(**model) -> dict:
    mixer = {"kind": "attention", "num_heads": 4}
    return {"d_model": 16, "num_layers": 4, "mixer": mixer, "ffn": None, **model}


@pytest.mark.parametrize("name", DEPTHS)
def test_every_depth_compiles_with_rows_cut_over_context(chips_of_a_cube, name):
    model = adaptive(depth=DEPTHS[name])
    make_program_on(chips_of_a_cube, {"fsdp": 4, "context": 4}, **model).compile(None)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_compiles_with_rows_cut_over_context(chips_of_a_cube, kind):
    model = adaptive(inputs={"kind": "tokens", "mask": True}, **OBJECTIVES[kind])
    mesh = {"fsdp": 4, "context": 4}
    make_program_on(chips_of_a_cube, mesh, {"kind": kind}, **model).compile(None)


MOE = {"kind": "moe", "num_experts": 8, "experts_per_token": 2, "d_hidden": 128, "bias": True}
BALANCE = {"auxiliary": 0.01, "bias_rate": 0.001}


@pytest.mark.parametrize(
    "mesh",
    [
        {"fsdp": 4},
        {"expert": 4},
        {"expert": 2, "tensor": 2},
        {"expert": 2, "context": 2},
        {"stage": 2, "expert": 2},
    ],
    ids=str,
)
def test_experts_compile(chips, mesh):
    mixer = {"kind": "attention", "num_heads": 2}
    ffn = MOE | {"balance": BALANCE, "shared": {}}
    model = {"d_model": 128, "mixer": mixer, "ffn": ffn}
    make_program_on(chips, mesh, **model).compile(None)


def test_experts_exchange_rows_and_gather_none(chips):
    """There and back, forward and backward: `dots` keeps what was exchanged."""
    ffn = MOE | {"num_experts": 16, "experts_per_token": 1, "normalize": False}
    mixer = {"kind": "attention", "num_heads": 2}
    model = {"d_model": 128, "mixer": mixer, "ffn": ffn}
    lines = make_program_on(chips, {"expert": 4}, **model).compile(None).train_step.as_text()
    kinds = "ragged-all-to-all|all-to-all|all-gather"
    moved = re.findall(rf"= (\S+) ({kinds})(?:-start)?\(.*/ffn/(?!.*further_rounds)", lines)
    rows = [(shape, kind) for shape, kind in moved if shape.startswith("bf16")]
    assert [kind for _, kind in rows] == ["ragged-all-to-all"] * 4, moved


def test_experts_compute_little_more_than_a_token_needs(chips):
    """Products and the blocks that kernels visit, against the model's FLOPs: all experts for all
    tokens would be four times those."""
    ffn = MOE | {"d_hidden": 1024, "bias": False}
    mixer = {"kind": "attention", "num_heads": 2}
    model = {"d_model": 256, "mixer": mixer, "ffn": ffn}
    program = make_program_on(chips, {"fsdp": 4}, length=4096, **model)
    cost = read_cost(program.compile(None).train_step.as_text())
    experts = [kernel for kernel in cost.kernels if "grouped" in kernel.name]
    assert sum(cost.kernels[kernel] for kernel in experts) == 9  # with gradients, of three matrices
    kernels = sum(times * kernel_flops(kernel) for kernel, times in cost.kernels.items())
    needed = program.flops_per_step / len(chips)
    assert needed < cost.flops + kernels < 1.3 * needed
