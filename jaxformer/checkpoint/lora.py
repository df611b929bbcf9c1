"""Adapters and the weights they adapt: merge them, and detect weights that have changed."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.model.lora import A, B, LoRAConfig
from jaxformer.model.parameter_paths import by_path, from_paths

PyTree = Any


def merged(params: PyTree, config: LoRAConfig) -> PyTree:
    """W + (alpha / rank) · A B in float32 for every kernel with adapters, without the adapters.

    Args:
        params: all weights of a model with adapters; kernels [layers, inputs..., outputs...] or
            without layers, A [..., inputs..., rank], B [..., rank, outputs...].
    """
    leaves = by_path(params)
    for path in [path for path in leaves if path.endswith(f"/{A}")]:
        module = path.removesuffix(A)
        a, b, kernel = leaves.pop(path), leaves.pop(module + B), leaves[f"{module}kernel"]
        product, stacked = _product, (a.ndim + b.ndim - 2 - kernel.ndim)
        for _ in range(stacked):  # over layers, over experts
            product = jax.vmap(product)
        leaves[f"{module}kernel"] = kernel + config.scale * product(a, b)
    return from_paths(leaves)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.tensordot(a, b, 1, precision="highest")


def fingerprint(params: PyTree) -> str:
    """32 hexadecimal digits that change with any bit of any weight, but not with the mesh.

    Each number's bits, as an integer, are multiplied by an odd number that depends on its place,
    and added up modulo 2^32: such sums do not depend on their order, and are made where the arrays
    lie.
    """
    sums = jax.jit(lambda tree: {path: _sum_of_bits(leaf) for path, leaf in by_path(tree).items()})
    digest = hashlib.sha256()
    for path, total in sorted(jax.device_get(sums(params)).items()):
        digest.update(f"{path} {total}\n".encode())
    return digest.hexdigest()[:32]


def _sum_of_bits(leaf: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for dimension, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(
            jnp.uint32, leaf.shape, dimension
        )
    return jnp.sum(bits * (place * jnp.uint32(2654435769) | 1), dtype=jnp.uint32)
