"""Learned positions for pictures of another size."""

import numpy as np
import pytest

from jaxformer.model.config import ModelConfig
from jaxformer.model.position_grids import Resizing, resizings

MODEL = {
    "d_model": 8,
    "num_layers": 1,
    "mixer": {"kind": "attention", "num_heads": 1},
    "ffn": None,
    "order": "full",
    "tie_embeddings": False,
    "outputs": {"kind": "classes"},
}


def model(size: list[int], places: int, *, class_token: bool = True) -> ModelConfig:
    inputs = {"kind": "patches", "size": size, "patch": 4, "class_token": class_token}
    positions = {"kind": "learned", "max_length": places}
    return ModelConfig.model_validate(MODEL | {"inputs": inputs, "positions": positions})


def test_vectors_that_change_evenly_do_so_on_the_new_grid_and_others_stay() -> None:
    rows, columns = np.mgrid[:8, :8].astype(np.float32)
    patches = np.stack([rows + 0.5, 2 * columns + 1], axis=-1).reshape(64, 2)
    table = np.concatenate([np.full((1, 2), 9, np.float32), patches])
    found = np.asarray(Resizing((8, 8), (16, 8), 1).of(table))
    assert np.array_equal(found[0], table[0])
    grid = found[1:].reshape(16, 8, 2)
    middles = (np.arange(16) + 0.5) / 2  # of the new rows, in old rows
    np.testing.assert_allclose(grid[4:12, :, 0], np.repeat(middles[4:12, None], 8, 1), atol=1e-5)
    np.testing.assert_allclose(grid[..., 1], np.tile(2 * np.arange(8) + 1, (16, 1)), rtol=1e-6)


def test_only_tables_of_another_grid_are_resized() -> None:
    small = model([8, 8], 5)
    assert resizings(small, small) == {}
    wide = {"position_embedding": Resizing((2, 2), (1, 4), 1)}
    assert resizings(small, model([4, 16], 5)) == wide
    assert str(wide["position_embedding"]) == "2 × 2 patches to 1 × 4"


@pytest.mark.parametrize("other", [model([16, 8], 99), model([16, 8], 8, class_token=False)])
def test_tables_with_other_places_are_left(other: ModelConfig) -> None:
    assert resizings(model([8, 8], 5), other) == {}
