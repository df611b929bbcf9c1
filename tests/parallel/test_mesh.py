from dataclasses import dataclass

import jax
import pytest

from jaxformer.errors import UserError
from jaxformer.parallel.mesh import AXES, check_rows, data_shards, make_mesh, resolve_sizes


@dataclass(frozen=True)
class Chip:
    """As much of a device as a mesh looks at."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def chips(slices: int, hosts: int, on_a_host: int) -> list[Chip]:
    """`hosts` in all, given in an order that mixes the slices."""
    of_host = [(host, host * slices // hosts) for host in range(hosts)]
    devices = [Chip(0, *where) for where in of_host for _ in range(on_a_host)]
    return [Chip(i, chip.process_index, chip.slice_index) for i, chip in enumerate(devices)][::-1]


EIGHT = chips(1, 1, 8)


def sizes(**axes: int) -> dict[str, int]:
    return dict.fromkeys(AXES, 1) | axes


def test_an_open_axis_takes_what_the_others_leave():
    resolved = resolve_sizes(sizes(data=-1, fsdp=2, tensor=2), EIGHT)
    assert resolved == sizes(data=2, fsdp=2, tensor=2)
    assert resolve_sizes(sizes(data=1, fsdp=-1), EIGHT)["fsdp"] == 8


def test_a_product_that_is_not_the_device_count_is_refused():
    with pytest.raises(UserError) as error:
        resolve_sizes(sizes(data=2, fsdp=2), EIGHT)
    assert str(error.value) == (
        "mesh sizes multiply to 4 (data 2, stage 1, fsdp 2, expert 1, tensor 1, context 1), but "
        "there are 8 cpu devices; mesh.data=-1 would do"
    )


def test_what_would_do_instead_of_a_product_that_is_not_the_device_count():
    for given, would_do in [
        (sizes(data=3, fsdp=16, expert=2), "mesh.data=-1 mesh.fsdp=1 mesh.expert=1"),
        (sizes(data=1, fsdp=16), "mesh.fsdp=-1"),
    ]:
        with pytest.raises(UserError, match=f"; {would_do} would do$"):
            resolve_sizes(given, EIGHT)
    with pytest.raises(UserError, match="but there is 1 cpu device; mesh.fsdp=-1 would do$"):
        resolve_sizes(sizes(fsdp=4), EIGHT[:1])


def test_an_open_axis_that_nothing_whole_is_left_for_is_refused():
    with pytest.raises(UserError) as error:
        resolve_sizes(sizes(data=-1, tensor=3), EIGHT)
    assert str(error.value) == (
        "mesh.data is -1, but the other axes multiply to 3, which does not divide the 8 cpu "
        "devices (data -1, stage 1, fsdp 1, expert 1, tensor 3, context 1); choose sizes whose "
        "product divides 8"
    )


def test_one_device_is_a_mesh_of_ones_that_the_compiler_shards():
    mesh = make_mesh({}, devices=jax.devices()[:1])
    assert dict(mesh.shape) == sizes()
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_rows_are_split_over_data_and_stage_and_fsdp_and_expert():
    assert data_shards(resolve_sizes(sizes(data=-1, fsdp=2, tensor=2), EIGHT)) == 4
    assert data_shards(resolve_sizes(sizes(data=-1, stage=2, tensor=2), EIGHT)) == 4


def test_a_batch_that_shards_times_accumulation_do_not_divide_is_refused():
    resolved = resolve_sizes(sizes(data=4, fsdp=2), EIGHT)
    check_rows(resolved, 32, 4, "train.batch_size")
    with pytest.raises(UserError) as error:
        check_rows(resolved, 40, 2, "train.batch_size")
    assert str(error.value) == (
        "train.batch_size is 40, not divisible by 16 (data shards 8 × train.accumulation 2; the "
        "mesh is data 4, stage 1, fsdp 2, expert 1, tensor 1, context 1); the nearest size that "
        "is: 32"
    )


@pytest.mark.parametrize(
    ("preset", "given", "expected"),
    [
        ("ddp", {}, {"data": 16}),
        ("ddp", {"fsdp": -1}, {"fsdp": 16}),
        ("ddp", {"data": 2, "fsdp": -1, "context": 2}, {"data": 2, "fsdp": 4, "context": 2}),
        ("fsdp", {}, {"fsdp": 16}),
        ("fsdp", {"tensor": 2}, {"fsdp": 8, "tensor": 2}),
        ("fsdp_tensor", {}, {"fsdp": 4, "tensor": 4}),
        ("hsdp", {}, {"data": 4, "fsdp": 4}),
    ],
)
def test_a_preset_fills_what_is_not_given(preset, given, expected):
    mesh = make_mesh(given, preset, chips(slices=1, hosts=4, on_a_host=4))
    assert dict(mesh.shape) == sizes(**expected)


def test_data_is_outermost_over_slices():
    """Neighbours along every other axis are of one slice."""
    mesh = make_mesh({"data": 4, "tensor": 2}, "fsdp", chips(slices=2, hosts=4, on_a_host=4))
    assert dict(mesh.shape) == sizes(data=4, fsdp=2, tensor=2)
    for row, devices in enumerate(mesh.devices):
        assert {chip.slice_index for chip in devices.flat} == {row // 2}


def test_slices_that_data_does_not_span_are_refused():
    with pytest.raises(UserError) as error:
        make_mesh({"data": 1, "fsdp": -1}, "ddp", chips(slices=2, hosts=2, on_a_host=2))
    assert str(error.value) == (
        "mesh.data is 1 (data 1, stage 1, fsdp 4, expert 1, tensor 1, context 1), not divisible by "
        "the 2 slices, which only data may span; mesh.preset=hsdp chooses data 2"
    )


def test_sizes_that_a_torus_has_no_sides_for_are_refused(monkeypatch):
    def refuse(*arguments, **options):
        raise NotImplementedError("Failed to find assignment for logical_axis_index 4 of size 2")

    monkeypatch.setattr(jax, "make_mesh", refuse)
    with pytest.raises(UserError, match=r"the mesh data 1, .* does not fit the torus of the 1 cpu"):
        make_mesh({"data": 1})
