"""Families by their `model_type`."""

from typing import Any

from jaxformer.checkpoint.interop.families.llama import LLAMA
from jaxformer.checkpoint.interop.family import Family
from jaxformer.schema import UserError, did_you_mean

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA,)}


def family_of(config: dict[str, Any], name: str) -> Family:
    """That of a config.json.

    Raises:
        UserError: none that is known.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(
            f"{name} has model_type {model_type!r}, which cannot be imported; families: "
            f"{', '.join(FAMILIES)}.{did_you_mean(str(model_type), FAMILIES)}"
        )
    return FAMILIES[model_type]
