"""What a model costs: parameters, FLOPs and bytes of decoding state, as its parts report them."""

import math

import jax
import jax.numpy as jnp
from flax.core import meta

from jaxformer.model.language_model import LanguageModel
from jaxformer.model.lora import adapter_paths
from jaxformer.model.parameter_paths import by_path


def abstract_parameters(model: LanguageModel) -> dict:
    """The parameter tree as shapes and types with their logical axes, without allocating them."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


def count_parameters(model: LanguageModel) -> int:
    """The number of parameters; tied embeddings count once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_parameters(model)))


def flops_per_token(model: LanguageModel, length: int) -> float:
    """Forward FLOPs per token in sequences of `length` tokens; a multiply-add counts as two.

    A training step costs three times as much: the backward pass has two products for each one,
    or one if the matrix is frozen.
    """
    return model.depth(parent=None).flops(length) + _flops_outside(model)


def most_flops_per_token(model: LanguageModel, length: int) -> float:
    """`flops_per_token` of the costliest sequence, where the depth lets sequences differ."""
    return model.depth(parent=None).most_flops(length) + _flops_outside(model)


def _flops_outside(model: LanguageModel) -> float:
    """Of the head and the adapters."""
    return 2.0 * model.config.d_model * model.vocab_size + 2.0 * _adapters(model)


def _adapters(model: LanguageModel) -> int:
    """How many weights the adapters have; each is multiplied once per token."""
    if model.lora is None:
        return 0
    leaves = by_path(meta.unbox(abstract_parameters(model)))
    return sum(math.prod(leaves[path].shape) for path in adapter_paths(leaves))


def kernels(model: LanguageModel, length: int) -> tuple[str, ...]:
    """Which kernels serve the layers that have some, for rows of `length` tokens on the current
    mesh, each named once.

    Raises:
        ValueError: a kernel asked for by name cannot serve.
    """
    chosen = (text for mixer in model.depth(parent=None).mixers() for text in mixer.kernels(length))
    return tuple(dict.fromkeys(chosen))


def cache_bytes(model: LanguageModel, length: int) -> int:
    """Bytes of decoding state of one sequence of `length` tokens."""
    return sum(mixer.cache_bytes(length) for mixer in model.depth(parent=None).mixers())
