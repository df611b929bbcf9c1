"""docs/speech.md: its sections are those of a configuration."""

import re
from pathlib import Path

import pytest
import yaml

from jaxformer.config import Config, DataConfig

PAGE = (Path(__file__).parents[1] / "docs" / "speech.md").read_text()
BLOCKS = [
    yaml.safe_load(block)
    for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
]


MODEL, DECODER, *SECTIONS = BLOCKS


@pytest.mark.parametrize("block", SECTIONS)
def test_a_section_of_the_page_is_one_of_a_configuration(block: dict) -> None:
    audio = DataConfig.model_validate(block["data"]).audio
    assert audio is not None


def test_the_first_sections_are_a_configuration() -> None:
    config = Config.model_validate(MODEL | SECTIONS[0])
    assert config.data.tokenizer == "characters"


def test_a_model_with_a_decoder_is_a_configuration() -> None:
    assert Config.model_validate(DECODER).instead == "predict RUN FILE"
