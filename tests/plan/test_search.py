import json
from dataclasses import replace
from functools import partial

import pytest

from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.parallel.chips import GIB
from jaxformer.plan import search as module
from jaxformer.plan.estimate import Estimate
from jaxformer.plan.plan import Memory, OutOfMemory, Plan
from jaxformer.plan.search import REMAT, ROWS, Variant, meshes, walk
from jaxformer.train.interrupt import Interrupted
from tests.runs import MODEL

MEMORY = 95 * GIB
SIZES = {"data": 1, "fsdp": 8, "tensor": 1, "stage": 1, "context": 1, "expert": 1}
PLAN = Plan(
    topology="v5p-16",
    slices=1,
    chips=8,
    mesh=SIZES,
    remat="full",
    rows=8,
    pipeline=None,
    compiler_options={},
    tokens=1,
    parameters=1,
    memory=Memory(0, 0, 0, 0, 0, 0, MEMORY),
    model_flops=1.0,
    product_flops=1.0,
    kernel_flops=0.0,
    cycles=1.0,
    seconds=Estimate(1.0, 0.0, 0.0, 0.0, 0.0, ()),
    endless_loops=(),
    step_seconds=1.0,
    bound="compute",
    tokens_per_second_per_chip=1.0,
    mfu=0.5,
    compile_seconds=0.0,
)


def needed(variant: Variant, state: float, of_row: dict[str, float]) -> float:
    return (state + of_row[variant.remat] * variant.rows) * GIB


def compiler(
    tried: list[Variant], state: float, of_row: dict[str, float], variant: Variant
) -> Plan:
    """Stands for the TPU's, with a row of so many GiB; less rematerialisation is faster."""
    tried.append(variant)
    if needed(variant, state, of_row) > MEMORY:
        raise OutOfMemory(needed(variant, state, of_row), MEMORY)
    speed = variant.rows / (variant.rows + 1) * (1 + REMAT.index(variant.remat))
    return replace(PLAN, remat=variant.remat, rows=variant.rows, tokens_per_second_per_chip=speed)


@pytest.mark.parametrize("state", [5, 60, 90])
@pytest.mark.parametrize("row", [0.1, 3, 8, 12, 30])
@pytest.mark.parametrize("more", [1, 3, 20])
def test_a_search_finds_the_most_rows_of_every_rematerialisation(state, row, more):
    """Half of the variants are compiled at most."""
    of_row = {"full": row, "dots": row * more, "none": row * more**2}
    tried, said = [], []
    compile_one = partial(compiler, tried, state, of_row)
    found = {
        made.remat: made.rows for made in walk(SIZES, state * GIB, MEMORY, compile_one, said.append)
    }
    variants = [Variant(SIZES, remat, rows) for remat in REMAT for rows in ROWS]
    fitting = [variant for variant in variants if needed(variant, state, of_row) <= MEMORY]
    most = {}
    for variant in fitting:
        most[variant.remat] = max(variant.rows, most.get(variant.remat, 0))
    assert found == most
    assert len(tried) <= len(variants) / 2


def test_what_is_left_out_is_said_with_the_reason():
    said, of_row = [], {"full": 20, "dots": 40, "none": 45}
    list(walk(SIZES, 10 * GIB, MEMORY, partial(compiler, [], 10, of_row), said.append))
    place = "data 1 fsdp 8 tensor 1 stage 1 context 1 expert 1"
    result = "1 tokens/s/chip, MFU 50.0%, 0 B, 1,000.0 ms bound by compute: train.remat="
    assert said[:4] == [
        f"{place}, remat full, 8 rows per shard: compiling",
        f"{place}, remat full, 8 rows per shard: does not fit, it needs 170.0 GiB of 95.0 GiB",
        "  left out: remat dots and none with 8 rows: it would keep more",
        f"{place}, remat full, 4 rows per shard: compiling",
    ]
    assert said[4].startswith(f"{place}, remat full, 4 rows per shard: {result}full")
    assert said[5] == "  left out: remat full with 2, 1 rows: it is no faster with fewer rows"
    assert "  left out: remat none with 4 rows: it would keep more" in said


def test_rows_that_cannot_fit_by_what_more_of_them_needed_are_not_compiled():
    tried, said = [], []
    of_row = dict.fromkeys(REMAT, 60)
    list(walk(SIZES, 10 * GIB, MEMORY, partial(compiler, tried, 10, of_row), said.append))
    assert [variant.rows for variant in tried] == [8, 1, 1, 1]
    assert (
        "  left out: remat full and dots and none with 2 rows: it needs at least 130.0 GiB" in said
    )


def test_a_mesh_whose_state_alone_is_too_large_is_left_out():
    said = []
    assert list(walk(SIZES, 100 * GIB, MEMORY, compiler, said.append)) == []
    assert said == [
        "data 1 fsdp 8 tensor 1 stage 1 context 1 expert 1: left out: parameters and optimizer "
        "alone take 100.0 GiB of 95.0 GiB"
    ]


def test_a_search_keeps_slices_apart_and_stages_and_context_as_they_are():
    config = Config.model_validate({"model": MODEL, "mesh": {"context": 2, "stage": 2}})
    tried = list(meshes(config, devices=64, slices=2))
    assert [sizes["tensor"] for sizes in tried] == [1, 2, 4, 8]
    assert {(sizes["data"], sizes["stage"], sizes["context"]) for sizes in tried} == {(2, 2, 2)}
    assert {sizes["fsdp"] * sizes["tensor"] for sizes in tried} == {8}
    made = Variant(tried[0], "dots", 4).of(config)
    assert made.train.batch_size == 4 * 2 * 2 * 8
    assert made.mesh.fsdp == 8 and made.train.remat == "dots"


@pytest.fixture
def without_compiler(monkeypatch):
    """A search of one mesh; → a function that says what the compiler does."""
    where = type("Where", (), {"chip": type("Chip", (), {"memory": MEMORY})})
    monkeypatch.setattr(module, "slices_of", lambda topology, slices: (where, [None] * 8))
    monkeypatch.setattr(module, "vocab_size_of", lambda config: 32)
    monkeypatch.setattr(module, "TENSOR", (1, 2))
    monkeypatch.setattr(module, "_state", lambda config, devices, vocab_size: GIB)

    def use(make_plan) -> int:
        monkeypatch.setattr(module, "make_plan", make_plan)
        config = Config.model_validate({"model": MODEL})
        return module.search(config, "v5p-16", 1, as_json=True)

    return use


def test_a_search_that_is_stopped_prints_the_best_so_far(without_compiler, capsys):
    made = []

    def make_plan(config, where, devices, vocab_size):
        if len(made) == 2:
            raise Interrupted("SIGINT")
        made.append(config.train.remat)
        return replace(PLAN, remat=made[-1], tokens_per_second_per_chip=float(len(made)))

    assert without_compiler(make_plan) == 75
    best = json.loads(capsys.readouterr().out)
    assert [plan["remat"] for plan in best] == ["dots", "full"]


def test_a_mesh_that_does_not_divide_the_model_is_left_out(without_compiler, capsys):
    def make_plan(config, where, devices, vocab_size):
        if config.mesh.tensor == 2:
            raise UserError("the mesh does not divide these parameters")
        return PLAN

    assert without_compiler(make_plan) == 0
    output = capsys.readouterr()
    assert len(json.loads(output.out)) == 3
    assert "left out: the mesh does not divide these parameters" in output.err
