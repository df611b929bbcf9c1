"""Rotary positions that differ between layers with a window and those without: from config.json to
our configuration, and back. Gemma 3 and OLMo 3 have them."""

from collections.abc import Mapping, Sequence

from jaxformer.checkpoint.interop.decoder import attention_of, layer_type
from jaxformer.checkpoint.interop.family import Json
from jaxformer.checkpoint.interop.hub_config import HubConfig
from jaxformer.checkpoint.interop.rope import from_rope, rope_section
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig

FIXED = ("default", "linear", "yarn", "llama3")  # scalings that do not follow a document's length


def to_ropes(
    hub: HubConfig, head_dim: int, windows: Sequence[int | None], thetas: Mapping[str, float]
) -> list[Json]:
    """Our `positions:` of every layer, by whether it has a window. `thetas` are the bases of both
    types of layers in a file that names none. Newer files have `rope_parameters` with a section for
    each type, older ones `rope_scaling`, which is of layers with full attention alone.

    Raises:
        UserError: a scaling, or an option of one, that we do not have.
    """
    old, new = hub.section("rope_scaling"), hub.section("rope_parameters")
    if old and "rope_type" not in old:
        raise UserError(
            f"{hub.name}: rope_scaling has {', '.join(old)}, but no rope_type, without which "
            f"transformers ignores them; supported: {', '.join(FIXED)}"
        )
    sections = HubConfig(new, f"{hub.name}: rope_parameters")
    positions = {}
    for kind, theta in thetas.items():
        section, name = sections.section(kind), f"rope_parameters: {kind}"
        if old and kind == "full_attention":
            section, name = {**section, **old}, "rope_scaling"
        positions[kind] = rope_section(hub, name, section, head_dim, theta, FIXED)
    sections.finish()
    return [positions[layer_type(window)] for window in windows]


def from_ropes(model: ModelConfig) -> Json:
    """The keys of config.json for the positions of a model's layers, by the type of a layer."""
    found: dict[str, Json] = {}
    for layer in model.layers():
        found.setdefault(layer_type(attention_of(layer).window), from_rope(layer.positions))
    sections = {kind: options["rope_parameters"] for kind, options in found.items()}
    return {**next(iter(found.values())), "rope_parameters": sections}
