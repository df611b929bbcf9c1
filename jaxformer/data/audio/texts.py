"""The texts of recordings as labels for CTC."""

import unicodedata

import numpy as np


def normalised(text: str, letters: str) -> str:
    """The text as it is learned. With `lower`, this is in small letters, without punctuation and
    symbols but apostrophes inside of words, and with single spaces."""
    if letters == "as_is":
        return text
    small = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    spaced = "".join(each if each == "'" or _is_of_a_word(each) else " " for each in small)
    words = (word.strip("'") for word in spaced.split())
    return " ".join(word for word in words if word)


def _is_of_a_word(character: str) -> bool:
    """Whether it is a letter, a mark above one, or a digit."""
    return unicodedata.category(character)[0] in "LMN"


def places_needed(labels: np.ndarray) -> int:
    """How many places a recording must have for CTC: one for each of its labels, and one for a
    blank between two equal ones."""
    return len(labels) + int(np.sum(labels[1:] == labels[:-1]))
