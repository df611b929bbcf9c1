"""The decoder that suits what a model was trained for."""

from dataclasses import replace
from typing import Any

from jax.sharding import Mesh

from jaxformer.errors import UserError
from jaxformer.generate.any_order import AnyOrderDecoder
from jaxformer.generate.decode import Decoder
from jaxformer.generate.diffusion import BlockDiffusionDecoder, MaskedDiffusionDecoder
from jaxformer.model.inputs import ChunksConfig
from jaxformer.model.language_model import LanguageModel
from jaxformer.objectives import (
    AnyOrderConfig,
    BlockDiffusionConfig,
    MaskedDiffusionConfig,
    ObjectiveConfig,
)


def check_left_to_right(objective: ObjectiveConfig, what: str, option: str) -> None:
    """Check that a run trained with `objective` decodes one token after another, as `option` needs.

    Raises:
        UserError: it does not.
    """
    if not objective.is_causal:
        raise UserError(
            f"{what} was trained with {objective.kind}, which does not decode one token after "
            f"another from left to right, as {option} needs; leave {option} out"
        )


def check_takes_back(model: LanguageModel, what: str) -> None:
    """Check that tokens which a model has read can be taken back, as a draft needs.

    Raises:
        UserError: they cannot.
    """
    inputs = model.config.inputs
    if isinstance(inputs, ChunksConfig):
        raise UserError(
            f"{what} has model.inputs {inputs.kind}, which cannot take tokens back, as draft "
            f"needs; leave draft out"
        )


def decoder_for(
    objective: ObjectiveConfig, model: LanguageModel, params: Any, eos_id: int, mesh: Mesh | None
) -> Decoder:
    """See `Decoder.of`; objectives that know no decoder of their own are decoded one token after
    another.

    Raises:
        UserError: the model continues no text.
    """
    if objective.instead is not None:
        raise UserError(
            f"the run was trained with {objective.kind}, which continues no text; use it with "
            f"jaxformer {objective.instead}"
        )
    if model.config.encoder is not None:
        raise UserError(
            "the run reads a source for each text that it writes; give it with jaxformer predict "
            'RUN --text "...", or jaxformer predict RUN FILE for recordings'
        )
    match objective:
        case MaskedDiffusionConfig():
            return MaskedDiffusionDecoder.of(model, params, eos_id, mesh)
        case BlockDiffusionConfig():
            decoder = BlockDiffusionDecoder.of(model, params, eos_id, mesh)
            return replace(decoder, block=objective.block)
        case AnyOrderConfig():
            return AnyOrderDecoder.of(model, params, eos_id, mesh)
        case _:
            return Decoder.of(model, params, eos_id, mesh)
