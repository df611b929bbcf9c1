"""What a model costs: parameters, FLOPs and bytes of decoding state, as its parts report them."""

import math

import jax
import jax.numpy as jnp
from flax.core import meta

from jaxformer.model.channel_mixers import build_channel_mixer
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.lora import adapter_paths
from jaxformer.model.mixers import Mixer, build_mixer
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
    mixers = sum(mixer.flops(length) for mixer in _mixers(model))
    ffns = sum(
        build_channel_mixer(layer.ffn, model.dims, parent=None).flops(length)
        for layer in model.config.layers()
        if layer.ffn is not None
    )
    head = model.config.d_model * model.vocab_size
    return mixers + ffns + 2.0 * head + 2.0 * _adapters(model)


def _mixers(model: LanguageModel) -> list[Mixer]:
    """The mixer of every layer that has one."""
    return [
        build_mixer(layer.mixer, model.dims, layer.positions, parent=None)
        for layer in model.config.layers()
        if layer.mixer is not None
    ]


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
    chosen = (text for mixer in _mixers(model) for text in mixer.kernels(length))
    return tuple(dict.fromkeys(chosen))


def cache_bytes(model: LanguageModel, length: int) -> int:
    """Bytes of decoding state of one sequence of `length` tokens."""
    return sum(mixer.cache_bytes(length) for mixer in _mixers(model))
