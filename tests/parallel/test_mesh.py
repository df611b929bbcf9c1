import jax
import pytest

from jaxformer.config import MeshConfig
from jaxformer.parallel.mesh import check_rows, data_shards, make_mesh, resolve_sizes
from jaxformer.schema import UserError


def sizes(**axes: int) -> dict[str, int]:
    return MeshConfig(**axes).model_dump()


def test_an_open_axis_takes_what_the_others_leave():
    resolved = resolve_sizes(sizes(data=-1, fsdp=2, tensor=2), 8)
    assert resolved == {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2, "context": 1}
    assert resolve_sizes(sizes(data=1, fsdp=-1), 8)["fsdp"] == 8


def test_a_product_that_is_not_the_device_count_is_refused():
    with pytest.raises(UserError) as error:
        resolve_sizes(sizes(data=2, fsdp=2), 8)
    assert str(error.value) == (
        "mesh sizes multiply to 4 (data 2, fsdp 2, expert 1, tensor 1, context 1), but there are 8 "
        "cpu devices; set one axis, such as mesh.data, to -1 to take the rest"
    )


def test_an_open_axis_that_nothing_whole_is_left_for_is_refused():
    with pytest.raises(UserError) as error:
        resolve_sizes(sizes(data=-1, tensor=3), 8)
    assert str(error.value) == (
        "mesh.data is -1, but the other axes multiply to 3, which does not divide the 8 cpu "
        "devices (data -1, fsdp 1, expert 1, tensor 3, context 1); choose sizes whose product "
        "divides 8"
    )


def test_one_device_is_a_mesh_of_ones_that_the_compiler_shards():
    mesh = make_mesh(sizes(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "expert": 1, "tensor": 1, "context": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_rows_are_split_over_data_and_fsdp():
    assert data_shards(resolve_sizes(sizes(fsdp=2, tensor=2), 8)) == 4


def test_a_batch_that_shards_times_accumulation_do_not_divide_is_refused():
    resolved = resolve_sizes(sizes(data=4, fsdp=2), 8)
    check_rows(resolved, 32, 4, "train.batch_size")
    with pytest.raises(UserError) as error:
        check_rows(resolved, 40, 2, "train.batch_size")
    assert str(error.value) == (
        "train.batch_size is 40, not divisible by 16 (data shards 8 × train.accumulation 2; the "
        "mesh is data 4, fsdp 2, expert 1, tensor 1, context 1); the nearest size that is: 32"
    )
