"""What a model costs: parameters, FLOPs and bytes of decoding state, as its parts report them."""

import math
from collections.abc import Callable
from functools import lru_cache

import jax
from flax.core import meta

from jaxformer.model.channel_mixers import build_channel_mixer
from jaxformer.model.config import ModelConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.model.lora import adapter_paths
from jaxformer.model.parameter_paths import by_path
from jaxformer.model.trunk_config import TrunkConfig

FURTHER_PATH = "further/"  # of the parameters of `model.further`
ENCODER_PATH = "encoder/"  # and of `model.encoder`


@lru_cache(maxsize=8)  # a run asks several times, which takes a second for a large model
def abstract_parameters(model: LanguageModel) -> dict:
    """The parameter tree as shapes and types with their logical axes, without allocating them."""
    return jax.eval_shape(model.init, jax.random.key(0), model.config.example)["params"]


def count_parameters(model: LanguageModel) -> int:
    """The number of parameters; tied embeddings count once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_parameters(model)))


def count_active(model: LanguageModel) -> int:
    """The number of parameters that a token meets: all but the experts that it does not visit."""
    leaves = by_path(meta.unbox(abstract_parameters(model)))
    shares = {path: active_share(model.config, path) for path in leaves}
    return round(sum(shares[path] * math.prod(leaf.shape) for path, leaf in leaves.items()))


def active_share(config: TrunkConfig, path: str) -> float:
    """The share of a parameter that a token meets."""
    if "/ffn/experts_" not in path:
        return 1.0
    if isinstance(config, ModelConfig) and config.encoder and path.startswith(ENCODER_PATH):
        return active_share(config.encoder, path.removeprefix(ENCODER_PATH))
    if found := config.layers_of_path(path):
        layers = config.layers()[found[0] : found[0] + 1]
    elif isinstance(config, ModelConfig) and path.startswith(FURTHER_PATH):
        layers = (config.further_layer(),)
    else:
        layers = config.inputs.own_layers
    return next(layer.ffn.active_share for layer in layers if layer.ffn and layer.ffn.experts)


def flops_per_token(model: LanguageModel, length: int, tokens_read: float = 1.0) -> float:
    """Forward FLOPs per token in sequences of `length` tokens; a multiply-add counts as two.

    A training step costs three times as much: the backward pass has two products for each one,
    or one if the matrix is frozen. Layers may read several tokens for each one that is predicted.
    """
    share = model.input_part(parent=None).share.mean
    layers = model.depth(parent=None).flops
    return _flops(model, length, share, lambda seen: tokens_read * layers(seen))


def _encoder_flops(model: LanguageModel, length: int) -> float:
    """Forward FLOPs of the encoder per token of a decoder's rows of `length` tokens."""
    if model.config.encoder is None:
        return 0.0
    encoder, places = (
        model.encoder_part(model.config.encoder, parent=None),
        model.config.encoder.length,
    )
    inputs = encoder.input_part(parent=None)
    share = inputs.share.mean
    layers = share * encoder.depth(parent=None).flops(max(1, math.ceil(share * places)))
    return (layers + inputs.own_flops(places)) * places / length


def most_flops_per_token(model: LanguageModel, length: int) -> float:
    """`flops_per_token` of the costliest sequence, where inputs or the depth let sequences
    differ."""
    share = model.input_part(parent=None).share.most
    return _flops(model, length, share, model.depth(parent=None).most_flops)


def further_flops_per_token(model: LanguageModel, length: int) -> float:
    """Forward FLOPs per token of all further predictions, which `flops_per_token` is without."""
    if model.config.further is None:
        return 0.0
    further = model.further_predictions(parent=None)
    outputs = 2.0 * model.config.d_model * model.vocab_size * model.config.further.count
    return further.flops(length) + outputs + 2.0 * _adapters(model, of_further=True)


def _flops(
    model: LanguageModel, length: int, share: float, of_layers: Callable[[int], float]
) -> float:
    """Forward FLOPs per token of the whole model, whose layers see `share` of the tokens."""
    layers = share * of_layers(max(1, math.ceil(share * length)))
    head = model.config.outputs.flops(model.dims, model.output_size, length)
    if model.config.outputs.of_rows:
        head /= length
    inputs = model.input_part(parent=None).own_flops(length)
    return layers + inputs + head + _encoder_flops(model, length) + 2.0 * _adapters(model, share)


def _adapters(model: LanguageModel, share: float = 1.0, *, of_further: bool = False) -> float:
    """How many weights of adapters, of `model.further` or of all else, are multiplied per token, if
    layers see `share` of them."""
    if model.lora is None:
        return 0.0
    leaves = by_path(meta.unbox(abstract_parameters(model)))
    return sum(
        active_share(model.config, path)
        * math.prod(leaves[path].shape)
        * (share if path.startswith("stack/") else 1.0)
        for path in adapter_paths(leaves)
        if path.startswith(FURTHER_PATH) == of_further
    )


def kernels(model: LanguageModel, length: int) -> tuple[str, ...]:
    """Which kernels serve the layers that have some, for rows of `length` tokens on the current
    mesh, each named once.

    Raises:
        ValueError: a kernel asked for by name cannot serve.
    """
    inputs = model.input_part(parent=None)
    places = inputs.places(length)
    chosen = [text for mixer in inputs.own_mixers() for text in mixer.kernels(length)]
    for mixer in model.depth(parent=None).mixers():
        chosen += mixer.kernels(places)
    if (config := model.config.encoder) is not None:
        for mixer in model.encoder_part(config, parent=None).depth(parent=None).mixers():
            chosen += mixer.kernels(config.length)
    for ffn in model.config.ffns():
        chosen += build_channel_mixer(ffn, model.dims, parent=None).kernels()
    return tuple(dict.fromkeys(chosen))


def cache_bytes(model: LanguageModel, length: int) -> int:
    """Bytes of decoding state of one sequence of `length` tokens."""
    inputs = model.input_part(parent=None)
    layers = model.depth(parent=None).mixers()
    places = inputs.places(length)
    return inputs.own_cache_bytes(length) + sum(mixer.cache_bytes(places) for mixer in layers)
