import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer.cli import main
from jaxformer.config import Config
from jaxformer.parallel.chips import GIB
from jaxformer.parallel.mesh import make_mesh
from jaxformer.plan.cost import read_cost
from jaxformer.plan.plan import OutOfMemory, _out_of_memory, too_large
from jaxformer.plan.topology import compile_only_devices, parse_slice
from tests.runs import MODEL

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, of the extra tpu, is not installed"
)


def test_what_does_not_fit_says_by_how_much_and_what_to_change():
    config = Config.model_validate({"model": MODEL, "train": {"batch_size": 64, "remat": "dots"}})
    sizes = {"data": 4, "stage": 1, "fsdp": 8, "expert": 1, "tensor": 2, "context": 1}
    error = OutOfMemory(118.21 * GIB, 95.74 * GIB)
    assert too_large(config, sizes, error, parse_slice("v5p-128")) == (
        "does not fit: a chip needs 118.2 GiB and has 95.7 GiB, 22.5 GiB too little; "
        "change one of:\n"
        "  train.remat=full (it is dots): a layer keeps only its input\n"
        "  train.accumulation=2 (it is 1): 1 row at a time on a chip, not 2; or a smaller "
        "train.batch_size\n"
        "  mesh.data=1 mesh.fsdp=32 (fsdp is 8): parameters and optimizer cut into more parts\n"
        "  mesh.context=2 or mesh.tensor=4: a chip takes less of every row\n"
        "  a larger slice than v5p-128 (64 chips)"
    )


@pytest.mark.parametrize(
    "message",
    [
        "the total memory required for HLO temporaries (24.00G) exceeds available HBM (15.75G).",
        "Ran out of memory in memory space hbm. Used 24.00G of 15.75G hbm. Exceeded by 8.25G.",
    ],
)
def test_the_compilers_refusals_are_understood(message):
    error = _out_of_memory(jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}"))
    assert isinstance(error, OutOfMemory)
    assert (error.needed, error.available) == (24 * GIB, 15.75 * GIB)


@needs_compiler
def test_a_scan_of_ten_products_on_four_chips():
    devices = compile_only_devices(parse_slice("v5p-8"), 1)
    mesh = make_mesh({"data": 4}, devices=devices)

    def ten(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=10)[0]

    rows = NamedSharding(mesh, PartitionSpec("data"))
    matrix = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=rows)
    cost = read_cost(jax.jit(ten).lower(matrix, matrix).compile().as_text())
    assert 4 * cost.flops == 10_995_116_277_760
    assert cost.endless == []


def write(folder, model=MODEL) -> str:
    path = folder / "c.yaml"
    path.write_text(
        json.dumps(
            {
                "model": {**model, "d_model": 64, "vocab_size": 256},
                "data": {"sequence_length": 128, "tokenizer": "missing.json"},
                "train": {"batch_size": 8},
                "mesh": {"data": 1, "fsdp": 4},
            }
        )
    )
    return str(path)


@needs_compiler
def test_a_plan_adds_up(tmp_path, capsys):
    assert main(["plan", write(tmp_path), "--topology", "v5p-8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["chips"] == 4 and plan["mesh"]["fsdp"] == 4
    memory = plan["memory"]
    scales = 5 * 64  # of the norms: whole on each of the 4 chips, everything else cut in 4
    assert memory["parameters"] == plan["parameters"] + 3 * scales
    assert memory["optimizer"] == 2 * memory["parameters"] + 4
    assert 4 * (plan["product_flops"] + plan["kernel_flops"]) > plan["model_flops"]
    assert plan["endless_loops"] == []
    kinds = {part["kind"] for part in plan["seconds"]["traffic"]}
    assert "all-gather" in kinds


def test_a_topology_is_checked_before_anything_is_compiled(tmp_path, capsys):
    assert main(["plan", write(tmp_path), "--topology", "v5p-8", "--slices", "0"]) == 2
    assert "--slices is 0; allowed: a whole number above 0" in capsys.readouterr().err
    assert main(["plan", write(tmp_path), "--topology", "v5p-9"]) == 2
    assert "v5p-9', which is not offered" in capsys.readouterr().err
