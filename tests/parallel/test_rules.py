import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jaxformer.config import Config, MeshConfig
from jaxformer.errors import UserError
from jaxformer.model.accounting import abstract_parameters
from jaxformer.model.language_model import build_model
from jaxformer.parallel.mesh import AXES, DATA_AXES
from jaxformer.parallel.rules import (
    RULES,
    batch_sharding,
    logical_axes,
    overridden,
    pad_vocabulary,
    parameter_shardings,
    rows_held,
)
from jaxformer.train.sharding_report import sharding_report
from tests.runs import MODEL

HEAD = ("d_model", "vocab")


def abstract_mesh(**sizes: int) -> AbstractMesh:
    return AbstractMesh(
        tuple((dict.fromkeys(AXES, 1) | sizes).values()), AXES, (AxisType.Auto,) * len(AXES)
    )


def parameters():
    config = Config.model_validate({"model": MODEL})
    return abstract_parameters(build_model(config.model, vocab_size=30))


def test_weights_are_split_by_fsdp_along_the_model_and_by_tensor_along_the_rest():
    shardings = parameter_shardings(abstract_mesh(fsdp=2, tensor=2), parameters())
    layer = shardings["stack"]["groups"]["layer_0"]
    assert tuple(shardings["embedding"].spec) == ("tensor", "fsdp")
    assert tuple(layer["mixer"]["query"]["kernel"].spec) == ("stage", "fsdp", "tensor", None)
    assert tuple(layer["mixer"]["output"]["kernel"].spec) == ("stage", "tensor", None, "fsdp")
    assert tuple(layer["ffn"]["in"]["kernel"].spec) == ("stage", "fsdp", "tensor")
    assert tuple(batch_sharding(abstract_mesh(data=2, fsdp=2, context=2)).spec) == (
        DATA_AXES,
        "context",
    )


def test_weights_outside_of_experts_are_split_over_expert_too_where_it_divides_them():
    def placed(names: tuple[str, ...], shape: tuple[int, ...], **overrides) -> tuple:
        weight = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)
        mesh = abstract_mesh(fsdp=2, expert=4)
        shardings = parameter_shardings(mesh, {"kernel": weight}, overridden(overrides))
        return tuple(shardings["kernel"].spec)

    dense, both = ("d_model", "d_hidden"), ("fsdp", "expert")
    assert placed(dense, (16, 6)) == (both, "tensor")
    assert placed(dense, (12, 6)) == ("fsdp", "tensor")
    assert placed(("experts", *dense), (4, 16, 6)) == ("expert", "fsdp", "tensor")
    # Rules may give `expert` to another dimension, or to none.
    split = ("tensor", "expert")
    assert placed(dense, (16, 8), d_hidden=split) == ("fsdp", split)
    assert placed(dense, (16, 8), d_model="fsdp") == ("fsdp", "tensor")
    assert placed(("latent", "heads"), (16, 8), d_model="fsdp") == ("fsdp", "tensor")
    assert placed(("latent", "heads"), (16, 8)) == (both, "tensor")
    assert placed(("vocab", "d_model"), (6, 16), vocab=split) == (None, "fsdp")


def test_dimensions_that_the_mesh_does_not_divide_are_listed_with_their_tensors():
    with pytest.raises(UserError) as error:
        parameter_shardings(abstract_mesh(fsdp=3, tensor=4), parameters())
    message = str(error.value)
    assert "dimension 0 is 30" not in message  # the vocabulary is padded instead
    assert "embedding [30, 16]: dimension 1 is 16, not divisible by mesh fsdp = 3" in message
    assert (
        "stack/groups/layer_0/mixer/query/kernel [2, 16, 2, 8]: dimension 2 is 2, not divisible by "
        "mesh tensor = 4"
    ) in message
    assert "ffn/in/kernel [2, 16, 24]: dimension 2" not in message


def test_a_rule_of_the_configuration_takes_the_place_of_the_usual_one():
    table = overridden({"vocab": ("tensor", "fsdp"), "d_model": None})
    shardings = parameter_shardings(abstract_mesh(fsdp=3, tensor=2), parameters(), table)
    layer = shardings["stack"]["groups"]["layer_0"]
    assert tuple(shardings["embedding"].spec) == (("tensor", "fsdp"), None)
    assert tuple(layer["ffn"]["in"]["kernel"].spec) == ("stage", None, "tensor")


def test_the_configuration_has_the_table_s_own_rules():
    assert MeshConfig().table == RULES


def test_the_report_says_what_a_device_has_and_what_lies_whole_on_all():
    mesh = abstract_mesh(fsdp=2, tensor=2)
    shapes = {"embedding": (32, 16), "big": (4096, 4096)}
    specs = {"embedding": PartitionSpec("tensor", "fsdp"), "big": PartitionSpec(None, "context")}
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, specs[name]))
        for name, shape in shapes.items()
    }
    assert sharding_report(params, 32, RULES).splitlines() == [
        "parameter  shape         over         a device has",
        "big        [4096, 4096]  - -              64.0 MiB",
        "embedding  [32, 16]      tensor fsdp         512 B",
        "in all                                    64.0 MiB",
        "large parameters lie whole on every device: big (64.0 MiB); mesh.preset=fsdp, or "
        "mesh.rules, splits them",
    ]


def test_a_vocabulary_that_the_mesh_does_not_divide_stays_whole_and_is_told():
    mesh = abstract_mesh(fsdp=2, tensor=4)
    embedding = parameters()["embedding"]
    params = {"embedding": embedding, "head": nn.Partitioned(jnp.zeros((16, 30)), HEAD)}
    shardings = parameter_shardings(mesh, params)
    assert tuple(shardings["embedding"].spec) == (None, "fsdp")
    assert tuple(shardings["head"].spec) == ("fsdp", None)
    both = overridden({"vocab": ("tensor", "fsdp")})  # fsdp, left alone, goes to d_model
    assert tuple(parameter_shardings(mesh, params, both)["embedding"].spec) == (None, "fsdp")

    placed = {"embedding": jax.ShapeDtypeStruct((30, 16), float, sharding=shardings["embedding"])}
    assert sharding_report(placed, 30, both).splitlines()[-1] == (
        "the vocabulary of 30 is not divisible by mesh tensor × fsdp = 8: its parameters are not "
        "split over it, and only the step pads the head, to 32; model.vocab_size=32 in a new run "
        "splits them too"
    )


def test_a_head_is_padded_with_zeros_to_what_the_mesh_divides():
    """Seen from the shapes that are traced: no devices are needed."""
    with jax.sharding.use_abstract_mesh(abstract_mesh(tensor=4)), nn.logical_axis_rules(RULES):
        head = jax.ShapeDtypeStruct((16, 30), jnp.float32)
        assert jax.eval_shape(pad_vocabulary, head).shape == (16, 32)
        assert jax.eval_shape(pad_vocabulary, head.update(shape=(16, 28))).shape == (16, 28)
    assert jax.eval_shape(pad_vocabulary, head).shape == (16, 30)  # without a mesh


def test_a_parameter_without_logical_axes_is_refused():
    class Bare(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("kernel", nn.initializers.zeros, (2, 3))

    boxed = jax.eval_shape(Bare().init, jax.random.key(0), jnp.ones((1, 2)))["params"]
    with pytest.raises(ValueError, match=r"parameter kernel \[2, 3\] has the logical axes \(\)"):
        logical_axes(boxed)


class Pieces:
    """Stands for a sharding of which this process's devices have the pieces 1 and 3 of four, each
    cut over two devices of the axis `context`."""

    mesh = abstract_mesh(data=2, fsdp=2, context=2)

    def addressable_devices_indices_map(self, shape: tuple[int, int]) -> dict:
        size = shape[0] // 4
        rows = [slice(piece * size, (piece + 1) * size) for piece in (3, 1, 1, 3)]
        halves = [slice(0, 1), slice(0, 1), slice(1, 2), slice(1, 2)]
        return dict(enumerate(zip(rows, halves, strict=True)))


def test_the_rows_of_a_process_are_those_that_its_devices_hold():
    assert rows_held(Pieces(), 8).tolist() == [2, 3, 6, 7]
    assert rows_held(Pieces(), 4).tolist() == [1, 3]
