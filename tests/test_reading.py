import pytest

from jaxformer.errors import UserError
from jaxformer.reading import read_json, read_json_object


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert read_json(b'\xef\xbb\xbf{"a": [1]}', "f") == {"a": [1]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1', "f is not JSON: Expecting ',' delimiter at character 7"),
        ('{\n"a": 1', "f is not JSON: Expecting ',' delimiter at line 2, column 7"),
        ("1" * 5000, "f is not JSON: an integer has more than 4,300 digits"),
        ("[" * 100_000, "f is not JSON: it is nested too deeply"),
        (b'"\xff"', "f is not JSON: byte 0xff at offset 1 is not UTF-8"),
        ("", "f is not JSON: Expecting value at character 0"),
    ],
)
def test_what_is_no_json_is_refused_with_the_place(text, reason):
    with pytest.raises(UserError) as refused:
        read_json(text, "f")
    assert str(refused.value) == reason


def test_what_must_be_an_object_is_one():
    with pytest.raises(UserError, match="f is not a JSON object"):
        read_json_object("[1]", "f")
