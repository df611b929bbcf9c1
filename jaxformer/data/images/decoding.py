"""The bytes of a picture to an array of the wanted size."""

import importlib.util
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxformer.config.images import ImagesConfig
from jaxformer.data.media.records import bad_file
from jaxformer.data.rows import BadRow
from jaxformer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

# The others call programs (EPS), fetch fonts, or are formats that nobody keeps pictures in.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
SIXTEEN_BITS = 65535
WHITE = 255


def check_pillow() -> None:
    """Check that Pillow is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("PIL") is None:
        raise UserError("data.kind is images; to decode them: pip install 'jaxformer[media]'")


def decode(content: bytes, place: str, images: ImagesConfig) -> np.ndarray:
    """The picture as uint8 [height, width, channels], upright and of the wanted size.

    Where it is transparent, it is white. Sixteen bits per channel are scaled to eight. An animation
    is its first frame. Resizing is bicubic, over all pixels that a smaller picture has room for.

    Args:
        place: where it comes from, for messages.

    Raises:
        BadRow: it is cut short, damaged, far too large, or no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on sizes and metadata that do no harm
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                opened.load()
                upright = ImageOps.exif_transpose(opened)
                picture = _with_channels(upright, place, images.channels)
        except UnidentifiedImageError:
            what = "is empty" if not content else "is no picture"
            raise _bad(place, f"{what}; allowed: {', '.join(FORMATS)}") from None
        except Image.DecompressionBombError:
            raise _bad(place, "has more pixels than a picture should") from None
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError) as error:
            raise _bad(place, f"is cut short or damaged ({error})") from None
    height, width, _ = images.shape
    if picture.size != (width, height):
        picture = _fitted(picture, width, height, images.fit)
    return np.asarray(picture).reshape(images.shape)


def _bad(place: str, what: str) -> BadRow:
    return bad_file(place, "picture", what)


def _with_channels(picture: "Image.Image", place: str, channels: int) -> "Image.Image":
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _in_eight_bits(picture, place)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        ground = Image.new("RGBA", over.size, (WHITE,) * 4)
        picture = Image.alpha_composite(ground, over).convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    if picture.mode in ("L", "RGB"):
        return picture if picture.mode == mode else picture.convert(mode)
    return picture.convert("RGB").convert(mode)  # also CMYK and palettes


def _in_eight_bits(picture: "Image.Image", place: str) -> "Image.Image":
    from PIL import Image

    values: Any = np.asarray(picture)
    largest = values.max(initial=0)
    if picture.mode == "F" or values.min(initial=0) < 0 or largest > SIXTEEN_BITS:
        raise _bad(place, f"has values up to {largest:g} ({picture.mode}); allowed: 8 or 16 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _fitted(picture: "Image.Image", width: int, height: int, fit: str) -> "Image.Image":
    from PIL import Image

    if fit == "stretch":
        return picture.resize((width, height), Image.Resampling.BICUBIC)
    scale = max(width / picture.width, height / picture.height)
    across, down = width / scale, height / scale  # the part that fills the wanted size
    left, top = (picture.width - across) / 2, (picture.height - down) / 2
    box = (max(left, 0.0), max(top, 0.0), left + across, top + down)
    right, bottom = min(box[2], picture.width), min(box[3], picture.height)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=(*box[:2], right, bottom))
