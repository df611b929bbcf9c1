"""The TPU's kernels of grouped products, interpreted, against loops over rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops.kernels import grouped

ROWS, INPUTS, OUTPUTS = 512, 136, 200
COUNTS = ([100, 0, 300, 7], [0, 0, 0, 512], [0, 0, 0, 0], [128, 128, 128, 128], [1, 200, 0, 55])


def numbers(counts: list[int]) -> tuple[np.ndarray, ...]:
    """Rows, gradients, matrices and the expert of every row that has one; the others are NaN."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(ROWS, INPUTS)), draw.normal(size=(ROWS, OUTPUTS))
    matrices = draw.normal(size=(len(counts), INPUTS, OUTPUTS))
    x[sum(counts) :] = y[sum(counts) :] = np.nan
    experts = np.repeat(np.arange(len(counts)), counts)
    return *(each.astype(np.float32) for each in (x, y, matrices)), experts


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("blocks", [(128, 128), (256, 200)])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_product_is_that_of_every_row_with_its_experts_matrix(
    counts: list[int], blocks: tuple[int, int], transposed: bool
) -> None:
    """Added to another array, if `transposed`."""
    x, y, matrices, experts = numbers(counts)
    found = grouped.grouped_product(
        jnp.asarray(x),
        jnp.asarray(matrices.swapaxes(1, 2) if transposed else matrices),
        jnp.asarray(counts),
        jnp.asarray(y) if transposed else None,
        blocks,
        transposed=transposed,
        interpret=True,
    )
    used = len(experts)
    expected = np.einsum("mi,mio->mo", x[:used], matrices[experts])
    expected += y[:used] if transposed else 0
    np.testing.assert_allclose(found[:used], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("widest", [128, 1024])
def test_the_outer_product_adds_up_the_rows_of_each_expert(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], widest: int
) -> None:
    monkeypatch.setattr(grouped, "WIDEST", widest)
    x, y, _, experts = numbers(counts)
    found = grouped.grouped_outer_product(
        jnp.asarray(x), jnp.asarray(y), jnp.asarray(counts), interpret=True
    )
    for expert in range(len(counts)):
        own = np.flatnonzero(experts == expert)
        np.testing.assert_allclose(found[expert], x[own].T @ y[own], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "outputs", "blocks"),
    [
        (4096, 14_336, (128, 1024)),  # Mixtral's
        (14_336, 4096, (128, 512)),
        (7168, 2048, (128, 1024)),  # DeepSeek-V3's
        (2048, 1408, (128, 768)),  # an even number of blocks, for two cores
        (28_672, 8192, (128, 256)),
        (200_000, 4096, None),
    ],
)
def test_blocks_hold_the_whole_contraction_where_memory_allows(
    inputs: int, outputs: int, blocks: tuple[int, int] | None
) -> None:
    assert grouped.product_blocks(inputs, outputs, itemsize=2) == blocks


@pytest.mark.parametrize("counts", COUNTS)
def test_every_block_of_rows_is_visited_by_the_experts_that_have_some(counts: list[int]) -> None:
    visits = grouped.visits_of(jnp.asarray(counts), ROWS, 128, empty=False)
    found = [
        (int(visits.expert[visit]), int(visits.block[visit]) * 128 + row)
        for visit in range(int(visits.total[0]))
        for row in range(max(0, int(visits.first[visit])), min(128, int(visits.end[visit])))
    ]
    experts = np.repeat(np.arange(len(counts)), counts)
    assert found == [(int(expert), row) for row, expert in enumerate(experts)]
