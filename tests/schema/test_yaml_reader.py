import math

import pytest

from jaxformer.errors import UserError
from jaxformer.schema.yaml_reader import read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("-3E2", -300.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("12", 12),
        ("010", 10),
        ("'1e-4'", "1e-4"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("text:data/*.txt", "text:data/*.txt"),
        ("[{}, {a: 1}]", [{}, {"a": 1}]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = read_yaml(text, "file").data
    assert found == value
    assert type(found) is type(value)


def test_malformed_yaml_names_line_and_column():
    with pytest.raises(UserError) as caught:
        read_yaml("a: 1\nb: 2: 3\n", "c.yaml")
    assert str(caught.value) == "c.yaml, line 2, column 5: mapping values are not allowed here"


def test_a_key_given_twice_names_both_lines():
    text = "train:\n  steps: 1\n  seed: 0\n  steps: 2\n"
    with pytest.raises(UserError) as caught:
        read_yaml(text, "c.yaml")
    assert str(caught.value) == (
        "c.yaml, line 4, column 3: key 'steps' is given twice, first in line 2; keep one"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor for"),
        ("a: !!timestamp 2024-01-01", "could not determine a constructor for"),
        ("a: !!int ten", "'ten' does not fit its tag tag:yaml.org,2002:int"),
        ("a: !!bool maybe", "'maybe' does not fit its tag tag:yaml.org,2002:bool"),
        ("a: &a {b: *a}", "found unconstructable recursive node"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("1: a", "a key must be text, not 1"),
        ("? [a, b]\n: 1", "a key must be text, not \\['a', 'b'\\]"),
        ("a:\n\t- 1", "found character '\\\\t' that cannot start any token"),
    ],
)
def test_anything_but_plain_data_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        read_yaml(text, "c.yaml")


def test_a_control_character_names_line_and_column():
    with pytest.raises(UserError) as caught:
        read_yaml("a: 1\nb: x\0y\n", "c.yaml")
    assert str(caught.value) == "c.yaml, line 2, column 5: YAML does not allow the character U+0000"


def test_lines_are_found_through_sections_and_lists():
    document = read_yaml("model:\n  pattern:\n    - {}\n    - mixer:\n        window: 4\n", "c")
    assert document.line_of(("model",)) == 1
    assert document.line_of(("model", "pattern", 1)) == 4
    assert document.line_of(("model", "pattern", 1, "mixer", "window")) == 5
    assert document.line_of(("model", "pattern", 2)) is None
    assert document.line_of(("model", "depth")) is None
