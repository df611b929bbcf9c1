"""Loads an imported run on several meshes of eight simulated devices; prints what it saw."""

import hashlib
import json
import sys

import jax
import numpy as np

import jaxformer as jf

MESHES = {
    "one": ["mesh.data=8"],
    "fsdp": ["mesh.data=1", "mesh.fsdp=8"],
    "tensor": ["mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2"],
}


def seen(path: str, overrides: list[str]) -> dict:
    params = jf.load(path, overrides).params
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    query = params["stack"]["groups"]["layer_0"]["mixer"]["query"]["kernel"]
    return {"hash": digest.hexdigest(), "query": query.addressable_shards[0].data.shape}


if __name__ == "__main__":
    json.dump({name: seen(sys.argv[1], axes) for name, axes in MESHES.items()}, sys.stdout)
