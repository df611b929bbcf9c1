"""Word and character errors, of transcripts made up here."""

import numpy as np
import pytest

from jaxformer.data.plain_tokenizers import ByteTokenizer
from jaxformer.evaluate.speech import Heard, edit_distance, summary, transcript

BLANK = 256


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("kitten", "sitting", 3),
        ("sunday", "saturday", 3),
        ("intention", "execution", 5),
        ("", "abc", 3),
        ("abc", "", 3),
        ("", "", 0),
        (["the", "cat", "sat"], ["the", "hat", "sat", "down"], 2),
    ],
)
def test_edit_distances_are_the_known_ones(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_words_are_what_spaces_separate():
    assert transcript("see the cat", "sea  the cat") == ("see the cat", "sea  the cat", 1, 2)


def ids(text: str, length: int, padding: int) -> list[int]:
    return [*text.encode(), *[padding] * (length - len(text))]


def test_the_report_is_over_all_words_and_characters():
    path = [[BLANK] * 8 for _ in range(4)]
    path[0] = [*b"aa", BLANK, *b"a bb", BLANK]  # "aa b"
    path[1][:2] = b"yy"  # "y"
    heard = Heard(
        path=np.array(path),
        labels=np.array([ids(text, 6, -1) for text in ("aa b", "x y", "long", "")]),
        too_long=np.array([False, False, True, False]),
        real=np.array([True, True, True, False]),
        loss=np.float32(3.5),
        num_labels=np.float32(7),
    )
    report = summary([heard, heard], ByteTokenizer(), BLANK)
    assert report.recordings == 6
    assert (report.words, report.characters) == (10, 22)
    assert report.loss == 0.5
    assert report.too_long == 2
    # "x" and "long" are missed.
    assert report.word_error_rate == 2 / 5
    assert report.character_error_rate == (2 + 4) / 11
    assert [each.said for each in report.worst] == ["long", "long", "x y", "x y"]


def test_without_a_word_there_is_no_rate():
    heard = Heard(
        path=np.full((1, 3), BLANK),
        labels=np.full((1, 2), -1),
        too_long=np.array([False]),
        real=np.array([True]),
        loss=np.float32(0.1),
        num_labels=np.float32(0),
    )
    report = summary([heard], ByteTokenizer(), BLANK)
    assert report.word_error_rate is None and report.character_error_rate is None
    assert report.worst == []
