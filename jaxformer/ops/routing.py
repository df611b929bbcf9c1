"""Sending tokens to experts and back, and products of every expert with its own tokens."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops.kernels import grouped

UNITS, SMALLEST_UNIT, LARGEST_UNIT = 8, 16, 64  # of the sizes of blocks, see `block_sizes`


class Dispatch(NamedTuple):
    """Slots for the assignments of tokens to experts; each token has k of them.

    `source` [slots] is the assignment token · k + choice in each slot, or −1 for an empty one;
    `slot` [tokens, k] is its inverse, or −1 for an assignment that has no slot.
    """

    source: jax.Array
    slot: jax.Array


def sort_by_expert(experts: jax.Array, num_experts: int) -> tuple[Dispatch, jax.Array]:
    """Slots in the order of the experts, and how many assignments each expert has.

    Args:
        experts: [tokens, k] int32; `num_experts` and above are nobody's, and come last.

    Returns:
        (slots [tokens · k], counts [num_experts] int32)
    """
    flat = experts.reshape(-1)
    source = jnp.argsort(flat, stable=True).astype(jnp.int32)
    places = jnp.arange(flat.size, dtype=jnp.int32)
    slot = jnp.zeros_like(places).at[source].set(places, unique_indices=True)
    ends = jnp.searchsorted(flat[source], jnp.arange(num_experts), side="right")
    counts = jnp.diff(ends, prepend=0).astype(jnp.int32)
    slot = jnp.where(flat < num_experts, slot, -1).reshape(experts.shape)
    return Dispatch(jnp.where(places < ends[-1], source, -1), slot), counts


def slots_of_round(
    dispatch: Dispatch, counts: jax.Array, number: jax.Array | int, room: int
) -> tuple[Dispatch, jax.Array]:
    """`room` of the sorted slots, those of round `number`, and the counts of their experts."""
    if room >= dispatch.source.size:  # one round has all
        return dispatch, counts
    begin = number * room
    source = dispatch.source.at[begin + jnp.arange(room)].get(mode="fill", fill_value=-1)
    slot = dispatch.slot - begin  # negative where there is none
    slot = jnp.where((slot >= 0) & (slot < room), slot, -1)
    ends = jnp.cumsum(counts)
    here = [jnp.clip(end - begin, 0, room) for end in (ends, ends - counts)]
    return Dispatch(source, slot), here[0] - here[1]


def take_rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [n, ...] at index, with zeros where it is negative."""
    rows = x.at[index].get(mode="clip")
    return jnp.where((index >= 0).reshape(*index.shape, *[1] * (x.ndim - 1)), rows, 0)


@jax.custom_vjp
def send(x: jax.Array, dispatch: Dispatch) -> jax.Array:
    """The token of every slot: x [tokens, d] → [slots, d]. Empty slots have any token, and nobody
    reads them: to make them zero would take one more pass over memory.

    Its gradient is `combine`, which needs no scatter.
    """
    return x.at[dispatch.source // dispatch.slot.shape[1]].get(mode="clip")


def _send_backward(dispatch: Dispatch, gradient: jax.Array) -> tuple[jax.Array, None]:
    return combine(gradient, dispatch), None


send.defvjp(lambda x, dispatch: (send(x, dispatch), dispatch), _send_backward)


@jax.custom_vjp
def combine(y: jax.Array, dispatch: Dispatch) -> jax.Array:
    """The sum of every token's slots: y [slots, d] → [tokens, d]. Its gradient is `send`."""
    wide = jnp.promote_types(y.dtype, jnp.float32)
    # One array for all, [k, tokens, d], a TPU adds up seven times slower.
    chosen = (take_rows(y, slots).astype(wide) for slots in dispatch.slot.T)
    return sum(chosen, jnp.zeros((), wide)).astype(y.dtype)


def _combine_backward(dispatch: Dispatch, gradient: jax.Array) -> tuple[jax.Array, None]:
    return send(gradient, dispatch), None


combine.defvjp(lambda y, dispatch: (combine(y, dispatch), dispatch), _combine_backward)


@jax.custom_vjp
def in_slots(choices: jax.Array, dispatch: Dispatch) -> jax.Array:
    """The number of every slot's assignment: [tokens, k] → [slots]; zero for empty slots."""
    return take_rows(choices.reshape(-1), dispatch.source)


def _in_slots_backward(dispatch: Dispatch, gradient: jax.Array) -> tuple[jax.Array, None]:
    return take_rows(gradient, dispatch.slot), None


in_slots.defvjp(lambda x, dispatch: (in_slots(x, dispatch), dispatch), _in_slots_backward)


@jax.custom_vjp
def collect(y: jax.Array, dispatch: Dispatch) -> jax.Array:
    """The slot of every assignment: y [slots, d] → [tokens, k, d]; any one for those without, as in
    `send`."""
    return y.at[dispatch.slot].get(mode="clip")


def _collect_backward(dispatch: Dispatch, gradient: jax.Array) -> tuple[jax.Array, None]:
    rows = gradient.reshape(-1, gradient.shape[-1])
    return rows.at[dispatch.source].get(mode="clip"), None


collect.defvjp(lambda y, dispatch: (collect(y, dispatch), dispatch), _collect_backward)


@jax.custom_vjp
def take_places(x: jax.Array, places: jax.Array) -> jax.Array:
    """The tokens that experts chose: x [batch, length, d] at places [batch, experts, slots], zero
    where they are negative. Its gradient is `put_places`."""
    return jax.vmap(take_rows)(x, places)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def put_places(y: jax.Array, places: jax.Array, length: int) -> jax.Array:
    """The sum over all slots of a token: y [batch, experts, slots, d] → [batch, length, d], added
    up in float32 at least. Its gradient is `take_places`."""

    def of_row(places: jax.Array, y: jax.Array) -> jax.Array:
        wide = jnp.promote_types(y.dtype, jnp.float32)
        place = jnp.where(places < 0, length, places)
        sums = jnp.zeros((length, y.shape[-1]), wide).at[place].add(y.astype(wide), mode="drop")
        return sums.astype(y.dtype)

    return jax.vmap(of_row)(places, y)


take_places.defvjp(
    lambda x, places: (take_places(x, places), (places, x.shape[1])),
    lambda kept, gradient: (put_places(gradient, *kept), None),
)
put_places.defvjp(
    lambda y, places, length: (put_places(y, places, length), places),
    lambda length, places, gradient: (take_places(gradient, places), None),
)


def experts_of_rows(counts: jax.Array, rows: int) -> jax.Array:
    """The expert of every row, for rows in the order of the experts; `len(counts)` beyond them."""
    return jnp.searchsorted(jnp.cumsum(counts), jnp.arange(rows), side="right").astype(jnp.int32)


@jax.custom_vjp
def grouped_products(
    x: jax.Array, matrices: Sequence[jax.Array], counts: jax.Array
) -> tuple[jax.Array, ...]:
    """y_m = x_m W_e(m) for each of several W, for rows in the order of the experts.

    On a TPU, it is a Pallas kernel, or XLA's `ragged_dot` where that cannot serve.
    Elsewhere XLA multiplies every row with every matrix, so blocks of rows are multiplied one after
    another, as many as the experts need.

    Args:
        x: [rows, inputs]
        matrices: each [experts, inputs, outputs].
        counts: [experts], how many rows each expert has.

    Returns:
        [rows, outputs] for each; rows beyond the sum of the counts hold anything, and so does their
        gradient.
    """
    return tuple(grouped_product(x, each, counts) for each in matrices)


def _products_forward(
    x: jax.Array, matrices: Sequence[jax.Array], counts: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple]:
    return grouped_products(x, matrices, counts), (x, matrices, counts)


def _products_backward(kept: tuple, gradients: tuple[jax.Array, ...]) -> tuple:
    x, matrices, counts = kept
    of_x = None  # each product adds its share to those before
    for each, gradient in zip(matrices, gradients, strict=True):
        of_x = grouped_product(gradient, each, counts, transposed=True, plus=of_x)
    of_matrices = [grouped_outer_product(x, gradient, counts) for gradient in gradients]
    return of_x, type(matrices)(of_matrices), None


grouped_products.defvjp(_products_forward, _products_backward)


def grouped_product(
    x: jax.Array,
    matrices: jax.Array,
    counts: jax.Array,
    *,
    transposed: bool = False,
    plus: jax.Array | None = None,
) -> jax.Array:
    """One of `grouped_products`, which cannot be differentiated by itself: with matrices [experts,
    outputs, inputs] if `transposed`, and added to `plus`."""
    return jax.lax.platform_dependent(
        x,
        matrices,
        counts,
        *([] if plus is None else [plus]),
        tpu=partial(tpu_product, transposed),
        default=partial(product_of_blocks, transposed),
    )


def grouped_outer_product(x: jax.Array, y: jax.Array, counts: jax.Array) -> jax.Array:
    """Σ x_m y_mᵀ over the rows of each expert: [rows, n], [rows, m] → [experts, n, m]."""
    return jax.lax.platform_dependent(
        x, y, counts, tpu=tpu_outer_product, default=outer_product_of_blocks
    )


def tpu_product(
    transposed: bool,
    x: jax.Array,
    matrices: jax.Array,
    counts: jax.Array,
    plus: jax.Array | None = None,
) -> jax.Array:
    """`grouped_product` by the kernel of `jaxformer.ops.kernels.grouped`."""
    inputs, outputs = x.shape[1], matrices.shape[1 if transposed else 2]
    blocks = None
    if _serves(x, inputs, outputs):
        blocks = grouped.product_blocks(inputs, outputs, x.dtype.itemsize)
    if blocks is None:
        return ragged_product(transposed, x, matrices, counts, plus)
    return grouped.grouped_product(x, matrices, counts, plus, blocks, transposed=transposed)


def tpu_outer_product(x: jax.Array, y: jax.Array, counts: jax.Array) -> jax.Array:
    """`grouped_outer_product` by the kernel of `jaxformer.ops.kernels.grouped`."""
    if not _serves(x, x.shape[1], y.shape[1]):
        return ragged_outer_product(x, y, counts)
    return grouped.grouped_outer_product(x, y, counts)


def _serves(x: jax.Array, inputs: int, outputs: int) -> bool:
    """Whether the kernels can: not where several devices share rows, nor for a few numbers."""
    mesh = jax.sharding.get_abstract_mesh()
    shared = any(mesh.shape[axis] > 1 for axis in set(mesh.axis_names) - set(mesh.manual_axes))
    large = len(x) % grouped.LANES == 0 and min(inputs, outputs) >= grouped.LANES
    return not shared and large and x.dtype in (jnp.bfloat16, jnp.float32)


def ragged_product(
    transposed: bool,
    x: jax.Array,
    matrices: jax.Array,
    counts: jax.Array,
    plus: jax.Array | None = None,
) -> jax.Array:
    """`grouped_product` by XLA's `ragged_dot`."""
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    product = jax.lax.ragged_dot(x, matrices, counts)
    return product if plus is None else product + plus


RAGGED_ROWS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[],
)


def ragged_outer_product(x: jax.Array, y: jax.Array, counts: jax.Array) -> jax.Array:
    """`grouped_outer_product` by XLA's `ragged_dot`."""
    beyond = (jnp.arange(len(y)) >= jnp.sum(counts))[:, None]
    x, y = (jnp.where(beyond, 0, each) for each in (x, y))  # what is there may be infinite
    return jax.lax.ragged_dot_general(x, y, counts, RAGGED_ROWS)


class Visits(NamedTuple):
    """Blocks of rows, of which no two experts share one: `total` of them, and by their number the
    expert, the first row, and how many there are."""

    total: jax.Array
    expert: jax.Array
    first: jax.Array
    rows: jax.Array


def block_sizes(rows: int, experts: int) -> tuple[int, ...]:
    """The sizes that a block may have: the more rows, the faster their product, so each is as large
    as its expert needs. With the last blocks' empty rows there are at most an eighth more than
    `rows` where an expert has 128 or more, a quarter where it has 32."""
    unit = min(LARGEST_UNIT, rows // (UNITS * experts))
    if unit < SMALLEST_UNIT:
        return (max(1, min(rows, max(8, rows // (4 * experts)))),)
    return tuple(unit * units for units in range(1, UNITS + 1))


def _visits(counts: jax.Array, rows: int, size: int) -> Visits:
    experts = len(counts)
    blocks = -(-counts // size)
    ends = jnp.cumsum(blocks)
    number = jnp.arange(-(-rows // size) + experts)
    expert = jnp.minimum(jnp.searchsorted(ends, number, side="right"), experts - 1)
    before = (number - (ends - blocks)[expert]) * size
    first = (jnp.cumsum(counts) - counts)[expert] + before
    return Visits(ends[-1], expert, first, jnp.clip(counts[expert] - before, 0, size))


def _of_size(
    product: Callable[[int], jax.Array], sizes: tuple[int, ...], count: jax.Array
) -> jax.Array:
    """`product(size)` of the smallest size that holds `count` rows."""
    if len(sizes) == 1:
        return product(sizes[0])
    return jax.lax.switch((count - 1) // sizes[0], [partial(product, size) for size in sizes])


def product_of_blocks(
    transposed: bool,
    x: jax.Array,
    matrices: jax.Array,
    counts: jax.Array,
    plus: jax.Array | None = None,
) -> jax.Array:
    """`grouped_product` by as many blocks of rows as there are; reads no expert without rows."""
    rows, sizes = len(x), block_sizes(len(x), len(matrices))
    largest, visits = sizes[-1], _visits(counts, rows, sizes[-1])
    contracted, outputs = (1, 0) if transposed else (0, 1)

    def visit(number: jax.Array, y: jax.Array) -> jax.Array:
        first, count = visits.first[number], visits.rows[number]
        matrix = jax.lax.dynamic_index_in_dim(matrices, visits.expert[number], keepdims=False)
        start = jnp.minimum(first, rows - largest)  # overlaps with the block before, at the end

        def product(size: int) -> jax.Array:
            block = jax.lax.dynamic_slice_in_dim(x, start, size)
            made = jax.lax.dot_general(block, matrix, (((1,), (contracted,)), ((), ())))
            return jnp.pad(made, ((0, largest - size), (0, 0)))

        made = _of_size(product, sizes, first - start + count)
        old = jax.lax.dynamic_slice_in_dim(y, start, largest)
        place = start + jnp.arange(largest)
        own = (place >= first) & (place < first + count)
        made = jnp.where(own[:, None], made if plus is None else made + old, old)
        return jax.lax.dynamic_update_slice_in_dim(y, made, start, axis=0)

    zeros = jnp.zeros((rows, matrices.shape[1 + outputs]), x.dtype)
    return jax.lax.fori_loop(0, visits.total, visit, zeros if plus is None else plus)


def outer_product_of_blocks(x: jax.Array, y: jax.Array, counts: jax.Array) -> jax.Array:
    """`grouped_outer_product` by as many blocks of rows as there are."""
    rows, sizes = len(x), block_sizes(len(x), len(counts))
    visits = _visits(counts, rows, sizes[-1])

    def visit(number: jax.Array, sums: jax.Array) -> jax.Array:
        first, count = visits.first[number], visits.rows[number]

        def product(size: int) -> jax.Array:
            start = jnp.minimum(first, rows - size)  # overlaps with the block before, at the end
            place = start + jnp.arange(size)
            own = (place >= first) & (place < first + count)
            left, right = (  # both: what is beyond may be infinite
                jnp.where(own[:, None], jax.lax.dynamic_slice_in_dim(each, start, size), 0)
                for each in (x, y)
            )
            return jax.lax.dot_general(
                left, right, (((0,), (0,)), ((), ())), preferred_element_type=sums.dtype
            )

        return sums.at[visits.expert[number]].add(_of_size(product, sizes, count))

    wide = jnp.promote_types(x.dtype, jnp.float32)
    zeros = jnp.zeros((len(counts), x.shape[1], y.shape[1]), wide)
    return jax.lax.fori_loop(0, visits.total, visit, zeros).astype(x.dtype)


def of_documents(x: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The sum of x [batch, length, n] over the document of each token, whose tokens need not stand
    side by side: [batch, length, n]."""

    def of_row(x: jax.Array, ids: jax.Array) -> jax.Array:
        place = jnp.searchsorted(jnp.sort(ids), ids)  # the same for all tokens of a document
        return jnp.zeros_like(x).at[place].add(x)[place]

    return jax.vmap(of_row)(x, segment_ids)
