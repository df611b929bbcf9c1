"""Products of every expert with its own rows, as Pallas kernels for TPUs.

The rows of all experts stand side by side, in the order of the experts. A visit is a block of rows
for one expert: a block that several experts share has a visit for each, which keeps what the
others wrote. So the time goes with the rows, whoever has how many (MegaBlocks, Gale et al., 2022,
arXiv:2211.15841).

Blocks take the whole contraction: a matrix is read once for all rows of its expert, and what the
matrix units add up stays with them. All experts but one may have a block more than their rows fill,
so blocks of the product have few rows. Those of the outer product, which adds what it makes to sums
in memory, have twice as many where experts have many rows.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128  # of a TPU: sizes of blocks are multiples
WIDEST = 1024  # columns of a block
MEMORY = 64 * 2**20  # bytes of a core's vector memory that a kernel may use
MEMORY_OF = {"TPU v4": 14 * 2**20}  # of cores with less


def memory() -> int:
    """Bytes of vector memory that a kernel may use on the chips that it is compiled for."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = device.device_kind if device else jax.devices()[0].device_kind
    return MEMORY_OF.get(kind, MEMORY)


class Visits(NamedTuple):
    """[visits] int32, but `total` [1]: how many there are; the rest repeat the last one. An expert
    has the rows from `first` to before `end` of the block."""

    total: jax.Array
    expert: jax.Array
    block: jax.Array
    first: jax.Array
    end: jax.Array


def visits_of(counts: jax.Array, rows: int, size: int, *, empty: bool) -> Visits:
    """The visits of blocks of `size` rows, one for each expert without rows if `empty`."""
    ends = jnp.cumsum(counts)
    starts = ends - counts
    blocks = jnp.where(counts > 0, (ends - 1) // size - starts // size + 1, int(empty))
    before = jnp.cumsum(blocks)
    total = before[-1]
    number = jnp.minimum(jnp.arange(rows // size + len(counts) - 1), jnp.maximum(total - 1, 0))
    expert = jnp.minimum(jnp.searchsorted(before, number, side="right"), len(counts) - 1)
    block = starts[expert] // size + number - (before - blocks)[expert]
    block = jnp.clip(block, 0, rows // size - 1)
    parts = (total[None], expert, block, starts[expert] - block * size, ends[expert] - block * size)
    return Visits(*(part.astype(jnp.int32) for part in parts))


def rows_of_sums(rows: int, experts: int) -> int:
    """Rows of a block of `grouped_outer_product`."""
    large = rows % (2 * LANES) == 0 and rows >= 16 * LANES * experts
    return 2 * LANES if large else LANES


def width_of_block(width: int, tiles: int, widest: int) -> int:
    """The width of a multiple of `tiles` blocks, each of up to `widest`; two cores share an even
    number."""
    count = tiles * -(-width // (tiles * widest))
    return min(-(-width // (count * LANES)) * LANES, width)


def product_blocks(inputs: int, outputs: int, itemsize: int) -> tuple[int, int] | None:
    """Rows and columns of a block of `grouped_product`; None where none fits the memory."""
    tiles = 2
    while True:
        width = width_of_block(outputs, tiles, WIDEST)
        twice = LANES * inputs + inputs * width + 2 * LANES * width  # one used, one on its way
        # A quarter is left for what the compiler keeps between.
        if 2 * itemsize * twice + 4 * LANES * width <= 3 * memory() // 4:
            return LANES, width
        if width <= LANES:
            return None
        tiles *= 2


def grouped_product(
    x: jax.Array,
    matrices: jax.Array,
    counts: jax.Array,
    plus: jax.Array | None,
    blocks: tuple[int, int],
    *,
    transposed: bool,
    interpret: bool = False,
) -> jax.Array:
    """y_m = x_m W_e(m) + plus_m; shapes are those of `jaxformer.ops.routing.grouped_product`."""
    (rows, inputs), (size, width) = x.shape, blocks
    outputs = matrices.shape[1 if transposed else 2]
    visits = visits_of(counts, rows, size, empty=False)
    contracted = ((1,), (1,)) if transposed else ((1,), (0,))

    def of_visit(
        total: jax.Array,
        expert: jax.Array,
        block: jax.Array,
        first: jax.Array,
        end: jax.Array,
        x: jax.Array,
        matrix: jax.Array,
        *added_and_y: jax.Array,
    ) -> None:
        visit = pl.program_id(1)
        *added, y = added_and_y

        @pl.when(visit < total[0])
        def multiply() -> None:
            made = jax.lax.dot_general(
                x[...], matrix[...], (contracted, ((), ())), preferred_element_type=jnp.float32
            )
            made = sum((ref[...] for ref in added), made).astype(y.dtype)
            y[...] = jnp.where(_own(made, first[visit], end[visit]), made, y[...])

    def matrix_at(column: jax.Array, visit: jax.Array, *given: jax.Array) -> tuple:
        expert = Visits(*given).expert[visit]
        return (expert, column, 0) if transposed else (expert, 0, column)

    matrix_block = (None, width, inputs) if transposed else (None, inputs, width)
    of_result = pl.BlockSpec(
        (size, width), lambda column, visit, *given: (Visits(*given).block[visit], column)
    )
    given = [] if plus is None else [plus]
    return _call(
        "grouped_product",
        of_visit,
        visits,
        (-(-outputs // width), len(visits.expert)),
        [
            pl.BlockSpec((size, inputs), lambda _, visit, *given: (Visits(*given).block[visit], 0)),
            pl.BlockSpec(matrix_block, matrix_at),
            *(of_result for _ in given),
        ],
        of_result,
        jax.ShapeDtypeStruct((rows, outputs), x.dtype),
        [],
        size * inputs * width,
        interpret,
    )(x, matrices, *given)


def grouped_outer_product(
    x: jax.Array, y: jax.Array, counts: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Σ x_m y_mᵀ over the rows of each expert: [rows, n], [rows, m] → [experts, n, m]."""
    (rows, inputs), outputs, experts = x.shape, y.shape[1], len(counts)
    size = rows_of_sums(rows, experts)
    highest, widest = 2 * WIDEST, WIDEST
    if memory() < MEMORY:
        highest = widest = 2 * WIDEST // x.dtype.itemsize
    height, width = width_of_block(inputs, 1, highest), width_of_block(outputs, 2, widest)
    visits = visits_of(counts, rows, size, empty=True)
    last = len(visits.expert) - 1

    def of_visit(
        total: jax.Array,
        expert: jax.Array,
        block: jax.Array,
        first: jax.Array,
        end: jax.Array,
        x: jax.Array,
        y: jax.Array,
        out: jax.Array,
        sums: jax.Array,
    ) -> None:
        visit = pl.program_id(2)
        here = expert[visit]

        @pl.when((visit == 0) | (expert[jnp.maximum(visit - 1, 0)] != here))
        def begin() -> None:
            sums[...] = jnp.zeros_like(sums)

        def add(x: jax.Array, y: jax.Array) -> None:
            sums[...] += jax.lax.dot_general(
                x, y, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
            )

        whole = (first[visit] <= 0) & (end[visit] >= size)
        real = visit < total[0]

        @pl.when(real & whole)
        def add_all() -> None:
            add(x[...], y[...])

        @pl.when(real & ~whole & (end[visit] > first[visit]))
        def add_own() -> None:
            parts = [ref[...] for ref in (x, y)]
            zero = [jnp.zeros_like(part) for part in parts]
            own = [_own(part, first[visit], end[visit]) for part in parts]
            add(*map(jnp.where, own, parts, zero))

        @pl.when((visit == last) | (expert[jnp.minimum(visit + 1, last)] != here))
        def finish() -> None:
            out[...] = sums[...].astype(out.dtype)

    def rows_at(axis: int) -> Callable[..., tuple]:
        return lambda *index: (Visits(*index[3:]).block[index[2]], index[axis])

    return _call(
        "grouped_outer_product",
        of_visit,
        visits,
        (-(-outputs // width), -(-inputs // height), len(visits.expert)),
        [pl.BlockSpec((size, height), rows_at(1)), pl.BlockSpec((size, width), rows_at(0))],
        pl.BlockSpec(
            (None, height, width),
            lambda column, row, visit, *given: (Visits(*given).expert[visit], row, column),
        ),
        jax.ShapeDtypeStruct((experts, inputs, outputs), x.dtype),
        [pltpu.VMEM((height, width), jnp.float32)],
        size * height * width,
        interpret,
    )(x, y)


def _own(block: jax.Array, first: jax.Array, end: jax.Array) -> jax.Array:
    """Which of a block's rows are those of the visit's expert, for all of its columns."""
    row = jax.lax.broadcasted_iota(jnp.int32, block.shape, 0)
    return (row >= first) & (row < end)


def _call(
    name: str,
    kernel: Callable[..., None],
    visits: Visits,
    grid: tuple[int, ...],
    in_specs: list[pl.BlockSpec],
    out_specs: pl.BlockSpec,
    out_shape: jax.ShapeDtypeStruct,
    scratch: list,
    multiplied: int,
    interpret: bool,
) -> Callable[..., jax.Array]:
    """The kernel over the grid; cores share its first axis. `multiplied`: numbers in a step."""
    flops = 2 * multiplied * math.prod(grid)
    one_after_another: list[Literal["arbitrary"]] = ["arbitrary"] * (len(grid) - 1)

    def call(*operands: jax.Array) -> jax.Array:
        moved = sum(operand.nbytes for operand in operands)
        moved += out_shape.size * out_shape.dtype.itemsize
        return pl.pallas_call(
            kernel,
            out_shape=out_shape,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(visits),
                in_specs=in_specs,
                out_specs=out_specs,
                grid=grid,
                scratch_shapes=scratch,
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", *one_after_another),
                vmem_limit_bytes=memory(),
            ),
            cost_estimate=pl.CostEstimate(flops=flops, bytes_accessed=moved, transcendentals=0),
            interpret=interpret,
            name=name,
        )(*visits, *operands)

    return call
