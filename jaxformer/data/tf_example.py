"""Reads `tf.train.Example`, what TensorFlow Datasets writes, without TensorFlow.

Of protobuf's encoding, all that leads to a text is fields with a length.
"""

from collections.abc import Iterator
from typing import Any

WITH_LENGTH = 2  # the wire type
BYTES_LIST = 1
NUMBERS = float("nan")  # stands for a feature of numbers, which are not decoded


def read_example(record: bytes) -> dict[str, Any] | None:
    """The features by name: bytes, a list of several, or NUMBERS. None for any other record."""
    try:
        features: dict[str, Any] = {}
        for number, content in _fields(record):
            if number != 1:
                return None
            for entry, feature in _fields(content):
                if entry != 1:
                    return None
                name, value = _entry(feature)
                features[name] = value
    except (ValueError, LookupError):
        return None
    return features or None


def _entry(entry: bytes) -> tuple[str, Any]:
    parts = dict(_fields(entry))
    name, kinds = parts[1].decode("utf-8"), list(_fields(parts.get(2, b"")))
    if not kinds:
        return name, None
    kind, values = kinds[-1]
    if kind != BYTES_LIST:
        return name, NUMBERS
    texts = [text for _, text in _fields(values)]
    return name, texts if len(texts) > 1 else next(iter(texts), None)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the fields with a length.

    Raises:
        ValueError, LookupError: it is not such a message.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key & 7 != WITH_LENGTH or not key >> 3:
            raise ValueError
        size, place = _varint(message, place)
        if place + size > len(message):
            raise ValueError
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError
