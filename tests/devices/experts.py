"""A train step of experts on eight simulated devices; prints the collectives of rows as JSON."""

import json
import re

from jaxformer.config import Config
from jaxformer.parallel.mesh import make_mesh
from jaxformer.train.program import make_program

D_MODEL, LENGTH = 24, 16
MESHES = {"exchange": {"expert": 8}, "ring": {"data": 4, "expert": 2}, "none": {"fsdp": 8}}


def collectives_of_rows(mesh_section: dict) -> list[str]:
    """The kinds of collectives, inside of experts, of arrays [..., D_MODEL] of tokens."""
    config = Config.model_validate(
        {
            "model": {
                "d_model": D_MODEL,
                "num_layers": 1,
                "mixer": {"kind": "attention", "num_heads": 2},
                "ffn": {"kind": "moe", "num_experts": 8, "experts_per_token": 2, "d_hidden": 20},
                "vocab_size": 40,
            },
            "data": {"sequence_length": LENGTH},
            "train": {"batch_size": 8, "steps": 2},
            "mesh": {"data": 1} | mesh_section,
        }
    )
    program = make_program(config, make_mesh(config.mesh.sizes), 40)
    pattern = r"= (.*?) (all-to-all|all-gather|all-reduce|reduce-scatter)(?:-start)?\(.*/ffn/"
    lines = program.compile_train_step().as_text().splitlines()
    several = [line for line in lines if "replica_groups={{0},{1}," not in line]
    found = re.findall(pattern, "\n".join(several))
    # A device has 16 tokens, and rows of experts or their weights have other sizes.
    tokens = {8 * 16 * 2, 16 * 2, 16, 32}
    rows = []
    for shapes, kind in found:
        sizes = [list(map(int, each.split(","))) for each in re.findall(r"f32\[([\d,]+)\]", shapes)]
        if any(each[-1] == D_MODEL and each[-2] in tokens for each in sizes if len(each) > 1):
            rows.append(kind)
    return sorted(rows)


if __name__ == "__main__":
    print(json.dumps({name: collectives_of_rows(mesh) for name, mesh in MESHES.items()}))
