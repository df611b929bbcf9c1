"""docs/translation.md: its sections are those of a configuration."""

import re
from pathlib import Path

import pytest
import yaml

from jaxformer.config import DataConfig
from jaxformer.config.loading import load_config

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "translation.md").read_text()
BLOCKS = [
    yaml.safe_load(block)
    for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_section_of_the_page_is_one_of_a_configuration(block: dict) -> None:
    assert DataConfig.model_validate(block["data"]).pairs is not None


def test_the_first_section_is_that_of_the_recipe() -> None:
    recipe = load_config(REPOSITORY / "configs" / "recipes" / "translate_wesnoth_cpu.yaml")
    assert DataConfig.model_validate(BLOCKS[0]["data"]) == recipe.data
