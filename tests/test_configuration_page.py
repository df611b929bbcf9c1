"""The reference of configuration keys, and that every key of it is described."""

from pathlib import Path

from jaxformer.config import Config
from jaxformer.config.page import configuration_page
from jaxformer.schema.tree import fields_of, item_type, kinds_of, section_classes

PAGE = Path(__file__).parents[1] / "docs/configuration.md"


def every_section() -> set[type]:
    found, waiting = set(), [Config]
    while waiting:
        section = waiting.pop()
        found.add(section)
        for field in fields_of(section).values():
            inner = section_classes(field.annotation) + section_classes(item_type(field.annotation))
            waiting += [each for each in inner if each not in found]
    return found


def test_the_reference_of_keys_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == configuration_page(), "run: make format"


def test_every_key_has_a_description() -> None:
    undescribed = [
        f"{section.__name__}.{key}"
        for section in every_section()
        for key, field in fields_of(section).items()
        if not field.description and not (key == "kind" and kinds_of(section))
    ]
    assert undescribed == []


def test_a_row_has_the_key_what_it_allows_its_default_and_its_meaning() -> None:
    rows = configuration_page().splitlines()
    patches = "patches that the model makes of a picture"
    text = "tokens per row, or of a text beside a picture"
    tokens = f"{text}; {patches}, or places of the longest recording"
    assert f"| `sequence_length` | a whole number of at least 2 | `256` | {tokens} |" in rows
    assert "| `from` | text or null | `null` | a run, or RUN/checkpoints/STEP |" in rows
    norm = (
        "| `norm` | a section [model.norm](#modelnorm) | `{kind: rms}` | the norms of all layers |"
    )
    assert norm in rows
