"""The section `data.images`: what pictures are brought to, and how training changes them."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from jaxformer.schema.base import Schema

Side = Annotated[int, Field(ge=1, le=4096)]
Size = Annotated[tuple[Side, ...], Field(min_length=2, max_length=2, strict=False)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Range = Annotated[tuple[Share, ...], Field(min_length=2, max_length=2, strict=False)]

LARGEST_MAGNITUDE = 30


class RandAugmentConfig(Schema):
    """RandAugment (Cubuk et al., 2020, arXiv:1909.13719): operations drawn for every picture."""

    layers: PositiveInt = Field(2, description="operations one after another")
    magnitude: Annotated[int, Field(ge=0, le=LARGEST_MAGNITUDE)] = Field(
        9, description="how strong they are"
    )


class AugmentConfig(Schema):
    """How pictures are changed at random each time that training sees them, in this order.

    Nothing is changed by default, and pictures to validate on never are.
    """

    pad: Side | None = Field(
        None, description="so many black pixels on every side, then a random crop of the same size"
    )
    crop: Range | None = Field(
        None,
        description="a random part resized to the whole, between these shares of the area, as "
        "[0.08, 1.0]",
    )
    flip: bool = Field(False, description="left and right exchanged in half of the pictures")
    rand_augment: RandAugmentConfig | None = Field(
        None, description="operations drawn for every picture; null for none"
    )
    erase: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0,
        description="the share of pictures in which a rectangle becomes noise (arXiv:1708.04896)",
    )

    @model_validator(mode="after")
    def _is_cut_in_one_way(self) -> "AugmentConfig":
        if self.pad is not None and self.crop is not None:
            raise ValueError(
                f"pad is {self.pad} and crop is {list(self.crop)}, but pictures are cut in one "
                f"way; leave one of them out"
            )
        if self.crop is not None and self.crop[0] > self.crop[1]:
            raise ValueError(
                f"crop is {list(self.crop)}; allowed: [SMALLEST, LARGEST] share of the area, "
                f"{list(reversed(self.crop))}"
            )
        return self

    @property
    def words(self) -> str:
        """What is changed, as in `pad 2, flip`; empty if nothing is."""
        given = {
            "pad": self.pad,
            "crop": self.crop and f"{self.crop[0]:g} to {self.crop[1]:g}",
            "flip": "" if self.flip else None,
            "rand_augment": self.rand_augment
            and f"{self.rand_augment.layers} × {self.rand_augment.magnitude}",
            "erase": self.erase or None,
        }
        return ", ".join(f"{key} {how}".strip() for key, how in given.items() if how is not None)


class ImagesConfig(Schema):
    """Pictures of one size, each with a class or a text.

    They are decoded once into a store of this size, and what `augment` says is done to those.
    """

    size: Size = Field(description="[height, width] in pixels")
    channels: Literal[1, 3] = Field(3, description="1: shades of grey; 3: red, green and blue")
    column: str = Field(
        "image",
        description="the column of the pictures, such as jpg in a webdataset; imagefolder: has "
        "none",
    )
    label: str = Field(
        "label",
        description="the column of the classes, or a field inside of one, as json.label; "
        "imagefolder: has none",
    )
    text: str | None = Field(
        None,
        description="the column of a text for each picture, or a field inside of one, for "
        "train.objective contrastive, in place of a class; null for classes",
    )
    fill: NonNegativeInt | None = Field(
        None,
        description="the id behind texts that are shorter than a row, which tokens see, as in "
        "SigLIP; null for padding, which they do not see",
    )
    fit: Literal["crop", "stretch"] = Field(
        "crop",
        description="how a picture gets its size: `crop` resizes the shorter side and cuts the "
        "centre out, `stretch` resizes both sides",
    )
    augment: AugmentConfig = Field(
        AugmentConfig(), description="how pictures are changed each time that training sees them"
    )

    @property
    def target(self) -> tuple[Literal["label", "text"], str]:
        """The key of the column of what belongs to each picture, and its name."""
        return ("label", self.label) if self.text is None else ("text", self.text)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)"""
        height, width = self.size
        return height, width, self.channels

    @model_validator(mode="after")
    def _texts_are_filled_up(self) -> "ImagesConfig":
        if self.fill is not None and self.text is None:
            raise ValueError(
                f"fill is {self.fill}, but classes are not filled up; give text, the column of "
                f"what is said of each picture, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _padding_is_smaller_than_a_picture(self) -> "ImagesConfig":
        pad = self.augment.pad
        if pad is not None and pad >= min(self.size):
            raise ValueError(
                f"augment.pad is {pad}, but pictures have size {list(self.size)}, so that some "
                f"would be all black; allowed: 1 to {min(self.size) - 1}"
            )
        return self
