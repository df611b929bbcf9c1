"""What a model costs, told by its own parts: parameters, FLOPs, bytes of decoding state."""

import math

import jax
import jax.numpy as jnp
from flax.core import meta

from jaxformer.model.ffn import FFN
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.lora import adapter_paths
from jaxformer.model.mixers import build_mixer
from jaxformer.model.parameter_paths import by_path


def abstract_parameters(model: LanguageModel) -> dict:
    """The parameter tree as shapes and types with their logical axes, nothing allocated."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


def count_parameters(model: LanguageModel) -> int:
    """How many numbers the parameters are; tied embeddings count once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_parameters(model)))


def flops_per_token(model: LanguageModel, length: int) -> float:
    """Forward FLOPs per token of sequences of `length` tokens, a multiply-add counting two.

    A training step costs three times as much: the backward pass has two products for each one.
    That of a frozen matrix has one.
    """
    config, dims = model.config, model.dims
    layers = sum(
        build_mixer(layer.mixer, dims, layer.positions, parent=None).flops(length)
        + (FFN(layer.ffn, dims, parent=None).flops(length) if layer.ffn else 0.0)
        for layer in config.layers()
    )
    return layers + 2.0 * config.d_model * model.vocab_size + 2.0 * _adapters(model)


def _adapters(model: LanguageModel) -> int:
    """How many weights the adapters have; each is multiplied once for every token."""
    if model.lora is None:
        return 0
    leaves = by_path(meta.unbox(abstract_parameters(model)))
    return sum(math.prod(leaves[path].shape) for path in adapter_paths(leaves))


def kernels(model: LanguageModel, length: int) -> tuple[str, ...]:
    """What serves the layers that have kernels, for rows of `length` tokens on the mesh that is
    set; layers that agree are told once.

    Raises:
        ValueError: a kernel asked for by name cannot serve.
    """
    chosen = (
        text
        for layer in model.config.layers()
        for text in build_mixer(layer.mixer, model.dims, layer.positions, parent=None).kernels(
            length
        )
    )
    return tuple(dict.fromkeys(chosen))


def cache_bytes(model: LanguageModel, length: int) -> int:
    """Bytes of decoding state of one sequence of `length` tokens."""
    return sum(
        build_mixer(layer.mixer, model.dims, layer.positions, parent=None).cache_bytes(length)
        for layer in model.config.layers()
    )
