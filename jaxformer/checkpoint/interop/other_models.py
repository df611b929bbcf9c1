"""Refusal of all but plain, unquantized models, by their config.json."""

import re
from collections.abc import Collection
from typing import Any

from jaxformer.checkpoint.interop.hub_config import shown
from jaxformer.checkpoint.interop.quantized import KEY, SUPPORTED
from jaxformer.errors import UserError

Json = dict[str, Any]

QUANTIZED = (KEY, "compression_config")
OTHER_HEAD = r"\w+For(Sequence|Token)Classification|\w+ForQuestionAnswering|\w+RewardModel"


def refuse_other_models(
    config: Json, name: str, allowed: Collection[str] = (), *, has_encoder: bool = False
) -> None:
    """Refuse a model that is not a plain language model.

    Args:
        allowed: keys of parts that the family has.
        has_encoder: whether the family is of an encoder and a decoder.

    Raises:
        UserError: the config.json of `name` is that of an encoder and a decoder, of several models,
            of a classifier, or of quantized weights.
    """
    if config.get("is_encoder_decoder") and not has_encoder:
        raise UserError(
            f"{name}: config.json has is_encoder_decoder true; of models with an encoder and a "
            f"decoder, only t5 and whisper can be imported"
        )
    every = {key: value for key, value in config.items() if _is_a_model(key, value)}
    parts = {key: value for key, value in every.items() if key not in allowed}
    if parts:
        kinds = ", ".join(f"{key} {shown(part.get('model_type'))}" for key, part in parts.items())
        raise UserError(
            f"{name}: config.json describes several models in one ({kinds}), as for images and "
            f"text; of those, only clip and siglip can be imported. Import the text model that it "
            f"was made from, or save its text model as a folder of its own in transformers"
        )
    for key in QUANTIZED:
        if config.get(key):
            raise UserError(
                f"{name}: config.json has {key} {shown(config[key])}: its weights are quantized, "
                f"and are not read; supported: {', '.join(SUPPORTED)}. Import the model that it "
                f"was made from, or a GGUF file of it, of any quantization"
            )
    heads = config.get("architectures")
    for head in heads if isinstance(heads, list) else []:
        if isinstance(head, str) and re.fullmatch(OTHER_HEAD, head):
            raise UserError(
                f"{name}: config.json has architectures [{head!r}], which gives classes or spans, "
                f"not tokens; import the language model that it was made from"
            )


def _is_a_model(key: str, value: Any) -> bool:
    names = key.endswith("_config") or key in ("encoder", "decoder")
    return names and isinstance(value, dict) and bool({"model_type", "hidden_size"} & value.keys())
