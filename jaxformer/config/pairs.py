"""The section `data.pairs`: texts that an encoder reads, each with one that a decoder writes."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, model_validator

from jaxformer.schema.base import Schema

Name = Annotated[str, Field(min_length=1)]


class PairsConfig(Schema):
    """Pairs of texts, such as sentences and their translations, several of them in a row."""

    source: Name = Field(
        description="the column of what the encoder reads, such as en, or a field inside of one, "
        "such as translation.en"
    )
    target: Name = Field(
        description="the column of what the decoder writes, or a field inside of one"
    )
    source_length: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="tokens per row of the encoder; data.sequence_length, which is that of the "
        "decoder, if null",
    )
    start: NonNegativeInt | None = Field(
        None,
        description="the id that the decoder reads before a target; null: bos, or the end of text "
        "where the tokenizer has no bos. Models of the families T5 and Marian begin with padding",
    )
    too_long: Literal["error", "skip"] = Field(
        "error",
        description="what happens to pairs of which a side is longer than its row: `skip` leaves "
        "them out",
    )

    @model_validator(mode="after")
    def _sides_differ(self) -> "PairsConfig":
        if self.source == self.target:
            raise ValueError(
                f"source and target are both {self.source}; allowed: the columns of two texts"
            )
        return self
