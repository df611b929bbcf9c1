"""A key that a config.json leaves out, or has as null, means what it means in transformers."""

import copy
import dataclasses
import json
import re
from typing import Any

import pytest
import transformers
from parity.config_keys import CONFIGS, keys, model_type

from jaxformer.checkpoint.interop.families import FAMILIES
from jaxformer.checkpoint.interop.fitting import described
from jaxformer.errors import UserError
from jaxformer.model.config import ModelConfig

Json = dict[str, Any]
# No longer fields of the classes: parts of rope_parameters, and keys of T5.
OLDER = {
    *("rope_theta", "rope_local_base_freq", "rope_scaling", "partial_rotary_factor"),
    *("global_rope_theta", "local_rope_theta"),
    *("n_positions", "tie_word_embeddings"),
}
CASES = [(name, path) for name in CONFIGS for path in keys(name)]
IDS = [f"{name}-{'.'.join(path)}" for name, path in CASES]


def changed(name: str, path: tuple[str, ...], *, drop: bool) -> Json:
    """A config.json with the key of `path` left out, or null."""
    config = {"model_type": model_type(name), **copy.deepcopy(CONFIGS[name])}
    section = config
    for key in path[:-1]:
        section = section[key]
    if drop:
        del section[path[-1]]
    else:
        section[path[-1]] = None
    return config


def whole(config: Json) -> Json | None:
    """Every key that transformers' class has made of a config.json, or None where it refuses."""
    try:
        made = transformers.CONFIG_MAPPING[config["model_type"]](**copy.deepcopy(config))
    except Exception:
        return None
    return json.loads(made.to_json_string(use_diff=False))


def read(config: Json) -> Json | str:
    """All that our model section of a config.json decides, or why there is none."""
    try:
        model = ModelConfig.model_validate(FAMILIES[config["model_type"]].read(config))
    except UserError as error:
        return str(error)
    first = model.pattern_layers()[0].positions
    return {
        **described(model),
        "std": model.init.std,
        "longest": getattr(first, "max_length", None),
    }


def assert_read_as_in_transformers(config: Json, key: str) -> None:
    """Or refused, with the key's name."""
    full, found = whole(config), read(config)
    if isinstance(found, str):
        assert re.search(rf"\b{key}\b", found)
    else:
        assert full is not None, f"transformers refuses it without {key}, and it was imported"
        assert found == read(full)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_whole_config_is_read_as_in_transformers(name: str) -> None:
    config = {"model_type": model_type(name), **CONFIGS[name]}
    full, found = whole(config), read(config)
    assert full is not None
    assert isinstance(found, dict), found
    assert found == read(full)


@pytest.mark.parametrize(("name", "path"), CASES, ids=IDS)
def test_a_key_left_out_is_what_transformers_assumes(name: str, path: tuple[str, ...]) -> None:
    assert_read_as_in_transformers(changed(name, path, drop=True), path[-1])


@pytest.mark.parametrize(("name", "path"), CASES, ids=IDS)
def test_a_null_is_what_transformers_makes_of_it(name: str, path: tuple[str, ...]) -> None:
    config = changed(name, path, drop=False)
    if whole(config) is not None:
        assert_read_as_in_transformers(config, path[-1])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_the_class(model_type: str) -> None:
    family = FAMILIES[model_type]
    kind = transformers.CONFIG_MAPPING[model_type]
    fields = {each.name: each.default for each in dataclasses.fields(kind)}
    assert family.defaults.keys() - fields.keys() <= OLDER
    for key, default in family.defaults.items():
        if key in fields:
            assert default == (list(each) if isinstance(each := fields[key], tuple) else each), key
    for key in family.nullable:
        assert whole({"model_type": model_type, key: None}) is not None
