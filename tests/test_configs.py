import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from jaxformer.json_schema import json_schema
from jaxformer.loading import load_config
from jaxformer.model.accounting import count_parameters
from jaxformer.model.language_model import build_model

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml"))

PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "qwen3-0.6b": 596_049_920,
    "mistral-7b": 7_241_732_096,
    "gemma-2b": 2_506_172_416,
    "smollm2-135m": 134_515_008,
    "mamba-130m": 129_135_360,
    "mamba2-130m": 128_989_632,
    "recurrentgemma-2b": 2_682_862_080,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_exactly_the_published_parameters(name):
    file = CONFIGS / "models" / f"{name}.yaml"
    model = build_model(load_config(file).model)
    assert count_parameters(model) == PUBLISHED[name]
    assert f"{PUBLISHED[name]:,} parameters" in file.read_text()


def test_every_model_file_has_its_published_count():
    assert {Path(file).stem for file in FILES if file.startswith("models/")} == set(PUBLISHED)


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_loads_and_fits_the_schema(name):
    text = (CONFIGS / name).read_text()
    load_config(CONFIGS / name)
    jsonschema.validate(yaml.safe_load(text), json.loads((CONFIGS / "schema.json").read_text()))


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_tells_editors_its_schema_and_readers_what_it_is(name):
    first, second, *_ = (CONFIGS / name).read_text().splitlines()
    target = first.removeprefix("# yaml-language-server: $schema=")
    assert ((CONFIGS / name).parent / target).resolve() == (CONFIGS / "schema.json").resolve()
    assert second.startswith("# ")
    assert second.endswith((".", "`.", ","))


def test_the_schema_file_is_current():
    assert (CONFIGS / "schema.json").read_text() == json_schema(), (
        "run: jaxformer schema > configs/schema.json"
    )


def test_the_schema_refuses_what_loading_refuses():
    schema = json.loads(json_schema())
    good = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    jsonschema.validate(good, schema)
    for section, key, value in [
        ("train", "stpes", 1),
        ("train", "steps", 0),
        ("train", "precision", "float8"),
        ("optimizer", "kind", "adamq"),
        ("mesh", "modle", 1),
    ]:
        bad = good | {section: good.get(section, {}) | {key: value}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_two_runs_never_share_a_directory_by_default():
    directories = [load_config(CONFIGS / name).run.dir for name in FILES]
    assert len(set(directories)) == len(directories)
