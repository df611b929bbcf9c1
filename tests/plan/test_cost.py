from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxformer.parallel.rounds import FURTHER
from jaxformer.plan.collectives import Collective
from jaxformer.plan.cost import read_cost
from jaxformer.plan.work import Work

# Five turns (i = 0, 2, 4, 6, 8) of a loop whose limit comes in by its tuple, around three turns of
# another that ends at its limit (j = 6, 5, 4), around a product of 8 × 32 by 32 × 16.
LOOPS = (Path(__file__).parent / "loops.hlo").read_text()
# Another core gathers: it is told after 100 cycles what, and is done after 30 more. Then two gather
# at once, among two devices and among four; one is done after 60 cycles, the other after 65. The
# last is a chain: a fusion starts it, another one of 40 cycles carries it on, a third one waits.
ASYNCHRONOUS = (Path(__file__).parent / "asynchronous.hlo").read_text()


def test_loops_count_as_often_as_they_run():
    cost = read_cost(LOOPS)
    assert cost.endless == []
    assert cost.flops == 5 * 3 * 2 * 8 * 32 * 16
    assert cost.cycles == 5 * 3 * 100
    # The product reads both sides from HBM and leaves its result on the chip; a counter reads two
    # numbers and writes one.
    product, communication = (8 * 32 + 32 * 16) * 2, 2 * (8 * 32 + 32 * 16) * 2
    assert cost.memory == 5 * (3 * product + communication) + (5 + 5 * 3) * 3 * 4


def test_collectives_have_their_bytes_and_the_devices_of_a_group():
    counts = read_cost(LOOPS).collectives
    gather = Collective("all-gather", 4 * 32 * 16 * 2, (0, 2, 4, 6))
    reduce = Collective("all-reduce", 8 * 32 * 2, (0, 1, 4, 5))
    assert counts == {gather: 5, reduce: 5}
    assert gather.traffic == 3 * 32 * 16 * 2
    assert reduce.traffic == 2 * 8 * 32 * 2 * 3 / 4


def test_a_flight_lasts_until_nothing_is_under_way():
    whole, four = 32 * 16 * 2, (0, 1, 2, 3)
    of_four = Collective("all-gather", whole, four)
    of_two = Collective("all-gather", whole / 2, (0, 1))
    cost = read_cost(ASYNCHRONOUS)
    assert cost.flights == {
        (of_four, Work(30), 0): 1,
        (of_two, of_four, Work(60), 0, Work(5), 1): 1,
        (of_four, Work(40), 0): 1,
    }
    assert cost.collectives == {of_four: 3, of_two: 1}
    assert cost.cycles == 7 + 100 + 30 + 60 + 5 + 40


def test_what_is_handed_on_in_a_chain_is_not_moved():
    """The gathering reads its part and writes the whole, once; the sum beside it reads and writes
    8 × 16 numbers."""
    start = next(line for line in ASYNCHRONOUS.splitlines() if "%chain-start = " in line)
    head = ASYNCHRONOUS.split(start)[0]
    without = head + "  ROOT %end = bf16[8,16]{1,0} bitcast(%x)\n}\n"
    part, whole = 8 * 16 * 2, 32 * 16 * 2
    assert read_cost(ASYNCHRONOUS).memory - read_cost(without).memory == part + whole + 2 * part


NESTED = """HloModule nested, is_scheduled=true

%row (a: f32[64,128], i: s32[]) -> f32[1,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,128]{1,0} dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,128}
}

%put (b: f32[64,128], row: f32[1,128], i: s32[]) -> f32[64,128] {
  %b = f32[64,128]{1,0} parameter(0)
  %row = f32[1,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %update = f32[64,128]{1,0} dynamic-update-slice(%b, %row, %i, %zero)
}

%both (a: f32[64,128], b: f32[64,128], i: s32[]) -> f32[64,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %b = f32[64,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %taken = f32[1,128]{1,0} fusion(%a, %i), kind=kLoop, calls=%row
  ROOT %put = f32[64,128]{1,0} fusion(%b, %taken, %i), kind=kLoop, calls=%put
}

ENTRY %main (a: f32[64,128], b: f32[64,128], i: s32[]) -> f32[64,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %b = f32[64,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %copied = f32[64,128]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%both
}
"""


def test_a_fusion_in_a_fusion_moves_no_more_than_the_row_it_takes_and_the_row_it_puts():
    row, index = 128 * 4, 4
    assert read_cost(NESTED).memory == row + row + index


def test_a_loop_is_computed_while_a_collective_runs():
    end = next(line for line in LOOPS.splitlines() if "%inner = " in line)
    text = LOOPS.replace("all-gather(", "all-gather-start(").replace(
        "%summed, %gathered", "%summed, %right"
    )
    text = text.replace(end, f"{end}\n  %done = bf16[32,16] all-gather-done(%gathered)")
    gather = Collective("all-gather", 4 * 32 * 16 * 2, (0, 2, 4, 6))
    reduce = Collective("all-reduce", 8 * 32 * 2, (0, 1, 4, 5))
    counters = 3 * 3 * 4  # bytes that three turns read and write to count themselves
    assert read_cost(text).flights == {(gather, reduce, 1, Work(3 * 100, counters), 0): 5}


def test_a_group_of_a_mesh_may_number_its_devices_in_another_order():
    text = LOOPS.replace(
        "mesh['a'=2,'b'=2,'c'=2] {'a','c'}", "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}"
    )
    (group,) = (one.group for one in read_cost(text).collectives if one.kind == "all-reduce")
    assert group == (0, 1, 2, 3)


def test_a_computation_of_another_core_ends_where_it_says_so():
    text = LOOPS.replace("\n}\n", '\n}, execution_thread="sparsecore"\n')
    assert text != LOOPS
    assert read_cost(text) == read_cost(LOOPS)


def test_a_loop_without_a_known_limit_is_named():
    text = LOOPS.replace("%ten = s32[] constant(10)", "%ten = s32[] bitcast-convert(%zero)")
    cost = read_cost(text)
    assert cost.endless == ["loop"]
    assert cost.cycles == 3 * 100


def test_rounds_that_equally_busy_experts_do_not_need_are_not_counted():
    def products(needed, x):
        with jax.named_scope(FURTHER):
            return jax.lax.fori_loop(1, needed, lambda _, x: x @ x, x @ x)

    arguments = (jnp.asarray(3), jnp.zeros((8, 8)))
    cost = read_cost(jax.jit(products).lower(*arguments).compile().as_text())
    assert (cost.endless, cost.flops) == ([], 2 * 8**3)


def test_a_ragged_exchange_has_the_bytes_of_its_smaller_side():
    """The other one has room for more."""
    operands = "(%left, %right, %i, %i, %i, %i)"
    text = LOOPS.replace("all-gather(%right)", f"ragged-all-to-all{operands}")
    (sent,) = (one for one in read_cost(text).collectives if "ragged" in one.kind)
    assert sent.bytes == min(8 * 32, 32 * 16) * 2


def test_a_product_with_a_batch_is_a_convolution_that_meets_every_place_once():
    text = LOOPS.replace("bf16[8,32]", "bf16[6,8,32]").replace("bf16[32,16]", "bf16[6,32,16]")
    window = "window={size=6 pad=0_0 stride=5 lhs_dilate=6}, dim_labels=0bf_0io->0bf"
    text = text.replace("dim_labels=bf_io->bf", window).replace("bf16[8,16]", "bf16[6,8,16]")
    assert read_cost(text).flops == 5 * 3 * 6 * 2 * 8 * 32 * 16


def test_products_of_a_compiled_scan():
    def rows(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]

    def scans(x, w):
        return jax.lax.fori_loop(0, 3, lambda _, x: rows(x, w), x)

    x, w = jnp.zeros((128, 64)), jnp.zeros((64, 64))
    text = jax.jit(scans).lower(x, w).compile().as_text()
    cost = read_cost(text)
    assert cost.flops == 3 * 7 * 2 * 128 * 64 * 64
    assert cost.endless == []


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        read_cost("HloModule empty")
