"""Families by their `model_type`."""

from jaxformer.checkpoint.interop.families.llama import LLAMA
from jaxformer.checkpoint.interop.family import Family, Json
from jaxformer.checkpoint.interop.fitting import fit
from jaxformer.model.config import ModelConfig
from jaxformer.schema import UserError, did_you_mean

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA,)}


def family_of(config: Json, name: str) -> Family:
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


def choose_family(model: ModelConfig) -> tuple[Family, Json]:
    """The first family that has such a model, and its config.json.

    Raises:
        UserError: none has, with what is in the way of the nearest.
    """
    nearest, faults = "", None
    for family in FAMILIES.values():
        options, differences = fit(family, model)
        if not differences:
            return family, options
        if faults is None or len(differences) < len(faults):
            nearest, faults = family.model_type, differences
    raise UserError(
        f"no family of transformers known here has this model ({', '.join(FAMILIES)}); the nearest "
        f"is {nearest}:\n  " + "\n  ".join(faults or [])
    )
