"""A config.json of every family, with each key that it may have, as far as possible with a value
that is not transformers' own default, so that a key left out is another model."""

from parity import keys_of_experts, keys_of_others
from parity.keys_of_others import Json

from jaxformer.checkpoint.interop.families import FAMILIES

CONFIGS: dict[str, Json] = {**keys_of_others.CONFIGS, **keys_of_experts.CONFIGS}


def model_type(name: str) -> str:
    """The `model_type` of a name above."""
    return max((kind for kind in FAMILIES if name.startswith(kind)), key=len)


def keys(name: str) -> list[tuple[str, ...]]:
    """Every key of a name above, those of its sections among them, as paths."""
    return _paths(CONFIGS[name])


def _paths(section: Json) -> list[tuple[str, ...]]:
    inner = [
        (key, *path)
        for key, value in section.items()
        if isinstance(value, dict)
        for path in _paths(value)
    ]
    return [(key,) for key in section] + inner
