"""Files of text: one document each, or one on every line."""

import io
from collections.abc import Iterator, Sequence
from functools import partial

from jaxformer.data.lines import lines_of
from jaxformer.data.long_text import BLOCK, LongText
from jaxformer.data.object_rows import row_of_object
from jaxformer.data.rows import Column, Policies, Row, decode_utf8, decoded
from jaxformer.data.units import FilePart
from jaxformer.data.unpacking import open_text

# Bytes, a block or more; the file of a longer text is opened again each time it is needed.
HELD = 2**22


def text_rows(file: FilePart, columns: Sequence[Column], policies: Policies) -> Iterator[Row]:
    """The one row of a file: the whole text, as a `LongText` if longer than a block. It cannot be
    cut, and has no columns."""
    if file.part:
        return
    name, policy = str(file.place), policies.invalid_utf8
    with open_text(file.place) as opened:
        data = opened.read(HELD + 1)
    if len(data) <= BLOCK:
        text = decode_utf8(data, policy, name, decoded)
    else:
        again = partial(open_text, file.place) if len(data) > HELD else partial(io.BytesIO, data)
        text = decode_utf8(again, policy, name, partial(LongText, name=name))
    yield Row(
        None if text is None else (text,),
        name,
        file.size,
        "not_utf8" if text is None else None,
    )


def line_rows(file: FilePart, columns: Sequence[Column], policies: Policies) -> Iterator[Row]:
    """One row per line, without its end, in the column `text`."""
    with open_text(file.place) as text:
        for line in lines_of(text, file):
            value = {"text": line.content.removesuffix(b"\n").removesuffix(b"\r")}
            yield row_of_object(value, line.place, line.done, columns, policies)
