"""A run of another depth starts from a run's layers by their numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.checkpoint.weights import find_weights
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig
from jaxformer.model.layer_places import Move, Place, moved, moves, places, shardings_before
from jaxformer.model.parameter_paths import by_path, from_paths
from jaxformer.parallel.mesh import make_mesh
from jaxformer.train.program import make_program, weights
from jaxformer.train.run import train
from jaxformer.train.start import begin, find_start
from tests.runs import MODEL, make_config

LAYERS = 4
ROUTERS = ["*/routing/*"]
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 257, (2, 12)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of four steps, with four layers of one kind, is `base`."""
    folder = tmp_path_factory.mktemp("depths")
    model = MODEL | {"num_layers": LAYERS}
    assert train(make_config(folder, model=model, train={"steps": 4}, checkpoint={"every": 4})) == 0
    (folder / "run").rename(folder / "base")
    return folder


def program_of(folder: Path, depth: dict, model: dict | None = None, **init: object):
    init = {"from": str(folder / "base"), **init}
    model = MODEL | {"num_layers": LAYERS, "depth": depth} | (model or {})
    config = make_config(folder, init=init, model=model)
    return make_program(config, make_mesh(config.mesh.sizes), 257)


def started(program) -> dict:
    return weights(begin(find_start(program), program)[0])


def plain(folder: Path) -> tuple[dict, jax.Array]:
    """The weights of the plain run, and its logits."""
    program = program_of(folder, {"kind": "fixed"})
    params = started(program)
    return params, program.model.apply({"params": params}, TOKENS)


def with_open_gates(params: dict) -> dict:
    """σ(50) is 1 in float32."""
    leaves = by_path(params)
    is_bias = {path: path.endswith("router/bias") for path in leaves}
    assert any(is_bias.values())
    return from_paths(
        {path: jnp.full_like(x, 50.0) if is_bias[path] else x for path, x in leaves.items()}
    )


def test_a_mixture_of_capacity_1_with_open_gates_goes_on_as_the_plain_model(folder: Path) -> None:
    for every in (2, 3):  # the fourth layer is the second repetition's last, or the tail
        depth = {"kind": "mixture", "capacity": 1.0, "every": every}
        program = program_of(folder, depth, partial=ROUTERS)
        params = started(program)
        expected, logits = plain(folder)
        found = program.model.apply({"params": with_open_gates(params)}, TOKENS)
        np.testing.assert_allclose(found, logits, atol=2e-6)
        kernel = expected["stack"]["groups"]["layer_0"]["ffn"]["in"]["kernel"]
        where = places(program.config.model, by_path(params))
        for layer, (part, index) in where.items():
            own = by_path(params)[f"{part}/ffn/in/kernel"]
            np.testing.assert_array_equal(own if index is None else own[index], kernel[layer])


def test_routers_start_fresh_only_if_init_partial_says_so(folder: Path) -> None:
    depth = {"kind": "mixture", "capacity": 0.5}
    missing = r"missing  stack/groups/layer_1/routing/router/weight float32\[2, 16\]"
    with pytest.raises(UserError, match=rf"differ in \d places(.|\n)*{missing}"):
        find_start(program_of(folder, depth))
    notes = find_start(program_of(folder, depth, partial=ROUTERS)).notes
    assert "fresh: stack/groups/layer_1/routing/router/weight [2, 16]" in notes
    assert "model.depth.kind was None and is mixture now" not in notes
    assert "model.depth.kind was fixed and is mixture now" in notes


@pytest.mark.parametrize(
    "depth",
    [
        {"kind": "exits"},
        {"kind": "loop", "before": 1, "after": 1, "turns": 1},
        {"kind": "recursion", "before": 1, "after": 1, "turns": 1, "capacities": [1.0]},
    ],
    ids=lambda depth: depth["kind"],
)
def test_depths_that_pass_every_layer_once_go_on_as_the_plain_model(
    folder: Path, depth: dict
) -> None:
    routed = depth["kind"] == "recursion"
    program = program_of(folder, depth, partial=["stack/routing*"] if routed else [])
    params = started(program)
    params = with_open_gates(params) if routed else params
    found = program.model.apply({"params": params}, TOKENS)
    np.testing.assert_allclose(found, plain(folder)[1], atol=2e-6)


def test_a_longer_pattern_of_the_same_layers_is_the_same_model(folder: Path) -> None:
    program = program_of(folder, {"kind": "fixed"}, model={"pattern": [{}, {}, {}]})
    found = program.model.apply({"params": started(program)}, TOKENS)
    np.testing.assert_allclose(found, plain(folder)[1], atol=2e-6)


def test_more_layers_than_the_source_has_are_refused_in_one_line(folder: Path) -> None:
    for depth in ({"kind": "mixture"}, {"kind": "fixed"}):
        with pytest.raises(UserError) as raised:
            find_start(program_of(folder, depth, model={"num_layers": 6}))
        assert str(raised.value) == (
            f"{find_weights(folder / 'base').where} has 4 layers, but model.num_layers is 6, and "
            f"layers are taken by their numbers; give model.num_layers=4, or start all layers "
            f"fresh: init.partial=[stack/*]"
        )
    start = find_start(
        program_of(folder, {"kind": "mixture"}, {"num_layers": 6}, partial=["stack/*"])
    )
    assert start.taken == {"embedding", "final_norm/scale"}


def test_a_layer_of_another_kind_is_told_path_by_path(folder: Path) -> None:
    pattern = [{}, {"ffn": {"kind": "swiglu", "d_hidden": 32}}]
    shapes = r"float32\[2, 16, 24\] in the checkpoint, float32\[2, 16, 32\] wanted"
    with pytest.raises(UserError, match=rf"shape    stack/groups/layer_1/ffn/in/kernel: {shapes}"):
        find_start(program_of(folder, {"kind": "fixed"}, model={"pattern": pattern}))


def test_what_only_some_layers_of_a_part_have_stays_where_it_was() -> None:
    """A mixture's routers, where all layers are to be one part."""
    shape = {"num_layers": 3, "d_model": 8, "mixer": MODEL["mixer"], "ffn": None}
    before = ModelConfig.model_validate(shape | {"depth": {"kind": "mixture"}})
    now = ModelConfig.model_validate(shape)
    leaves = {
        "embedding": jnp.zeros(3),
        "stack/groups/layer_0/mixer/w": jnp.array([[0.0]]),
        "stack/groups/layer_1/mixer/w": jnp.array([[1.0]]),
        "stack/groups/layer_1/routing/w": jnp.array([[5.0]]),
        "stack/tail/layer_0/mixer/w": jnp.array([2.0]),
    }
    target = {layer: Place("stack/groups/layer_0", layer) for layer in range(3)}
    assert places(now, ["stack/groups/layer_0/mixer/w"]) == target
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    found = moved(moves(places(before, leaves), target, shapes), leaves)
    assert sorted(found) == [
        "embedding",
        "stack/groups/layer_0/mixer/w",
        "stack/groups/layer_1/routing/w",
    ]
    np.testing.assert_array_equal(found["stack/groups/layer_0/mixer/w"], [[0.0], [1.0], [2.0]])


def test_arrays_are_read_as_they_are_sharded_then_but_for_their_layers() -> None:
    mesh = make_mesh({})
    sources = (("groups", 0), ("tail", None))
    for is_stacked, after in ((True, ("stage", "fsdp")), (False, ("fsdp",))):
        found = [Move("new", sources, is_stacked)]
        before = shardings_before(found, {"new": NamedSharding(mesh, PartitionSpec(*after))})
        assert before["groups"].spec == PartitionSpec(None, "fsdp")
        assert before["tail"].spec == PartitionSpec("fsdp")
