import jax.numpy as jnp
import pytest

from jaxformer.checkpoint.manifest import check_same_tree, describe, differences
from jaxformer.errors import UserError

SAVED = {
    "embedding": jnp.zeros((10, 4)),
    "layers": ({"query": jnp.zeros((2, 4, 4)), "scale": jnp.zeros(4, jnp.bfloat16)},),
}


def test_a_tree_is_described_by_path_shape_and_dtype():
    assert describe(SAVED) == {
        "embedding": {"shape": [10, 4], "dtype": "float32"},
        "layers/0/query": {"shape": [2, 4, 4], "dtype": "float32"},
        "layers/0/scale": {"shape": [4], "dtype": "bfloat16"},
    }
    assert differences(describe(SAVED), describe(SAVED)) == []


def test_a_difference_names_what_is_missing_extra_or_of_another_shape_or_dtype(tmp_path):
    wanted = {
        "embedding": jnp.zeros((12, 4)),
        "layers": ({"queries": jnp.zeros((2, 4, 4)), "scale": jnp.zeros(4)},),
        "head": jnp.zeros((4, 12)),
    }
    where = tmp_path / "run" / "checkpoints" / "30"
    with pytest.raises(UserError) as error:
        check_same_tree("params", where, describe(SAVED), wanted)
    assert str(error.value).splitlines() == [
        f"{where} does not fit: its params differ in 5 places from those of the configuration; "
        f"give the configuration it was trained with ({tmp_path / 'run' / 'config.yaml'})",
        "  shape    embedding: float32[10, 4] in the checkpoint, float32[12, 4] wanted",
        "  missing  head float32[4, 12]: not in the checkpoint",
        "  missing  layers/0/queries float32[2, 4, 4]: not in the checkpoint",
        "  dtype    layers/0/scale: bfloat16[4] in the checkpoint, float32[4] wanted",
        "  extra    layers/0/query float32[2, 4, 4]: only in the checkpoint. "
        "Did you mean 'layers/0/queries'?",
    ]


def test_a_long_difference_is_cut(tmp_path):
    wanted = {f"weight_{number}": jnp.zeros(1) for number in range(30)}
    with pytest.raises(UserError, match=r"and 13 more$"):
        check_same_tree("params", tmp_path, describe(SAVED), wanted)


def test_a_checkpoint_in_float64_is_told_with_its_cause():
    saved = {"embedding": {"shape": [4], "dtype": "float64"}}
    (line,) = differences(saved, describe({"embedding": jnp.zeros(4)}))
    assert line.endswith("float32[4] wanted; an earlier version made it under JAX_ENABLE_X64=1")
