"""RandAugment: a few operations, drawn for every picture, all of one magnitude.

(Cubuk et al., 2020, "RandAugment: practical automated data augmentation with a reduced search
space", arXiv:1909.13719.) The 14 operations and their ranges are those of torchvision.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jaxformer.config.images import LARGEST_MAGNITUDE

if TYPE_CHECKING:
    from PIL import Image

# What an operation does to a picture by a signed strength from -1 to 1.
Operation = Callable[["Image.Image", float], "Image.Image"]


def rand_augment(picture: np.ndarray, draws: np.ndarray, magnitude: int) -> np.ndarray:
    """The picture after the operations that `draws` choose, uint8 [height, width, channels].

    Args:
        draws: in [0, 1), [layers, 2]: which operation, and in which direction.
        magnitude: from 0 to 30.
    """
    from PIL import Image

    strength = magnitude / LARGEST_MAGNITUDE
    changed = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    for which, direction in draws.tolist():
        operation = OPERATIONS[int(which * len(OPERATIONS))]
        changed = operation(changed, strength if direction < 0.5 else -strength)
    return np.asarray(changed).reshape(picture.shape)


def _moved(picture: "Image.Image", matrix: tuple[float, ...]) -> "Image.Image":
    from PIL import Image

    return picture.transform(picture.size, Image.Transform.AFFINE, matrix)


def _same(picture: "Image.Image", strength: float) -> "Image.Image":
    return picture


def _shear_x(picture: "Image.Image", strength: float) -> "Image.Image":
    return _moved(picture, (1, 0.3 * strength, 0, 0, 1, 0))


def _shear_y(picture: "Image.Image", strength: float) -> "Image.Image":
    return _moved(picture, (1, 0, 0, 0.3 * strength, 1, 0))


def _translate_x(picture: "Image.Image", strength: float) -> "Image.Image":
    return _moved(picture, (1, 0, round(150 / 331 * strength * picture.width), 0, 1, 0))


def _translate_y(picture: "Image.Image", strength: float) -> "Image.Image":
    return _moved(picture, (1, 0, 0, 0, 1, round(150 / 331 * strength * picture.height)))


def _rotate(picture: "Image.Image", strength: float) -> "Image.Image":
    return picture.rotate(30 * strength)


def _brightness(picture: "Image.Image", strength: float) -> "Image.Image":
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(picture).enhance(1 + 0.9 * strength)


def _color(picture: "Image.Image", strength: float) -> "Image.Image":
    from PIL import ImageEnhance

    return ImageEnhance.Color(picture).enhance(1 + 0.9 * strength)


def _contrast(picture: "Image.Image", strength: float) -> "Image.Image":
    from PIL import ImageEnhance

    return ImageEnhance.Contrast(picture).enhance(1 + 0.9 * strength)


def _sharpness(picture: "Image.Image", strength: float) -> "Image.Image":
    from PIL import ImageEnhance

    return ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * strength)


def _posterize(picture: "Image.Image", strength: float) -> "Image.Image":
    from PIL import ImageOps

    return ImageOps.posterize(picture, 8 - round(4 * abs(strength)))


def _solarize(picture: "Image.Image", strength: float) -> "Image.Image":
    from PIL import ImageOps

    return ImageOps.solarize(picture, round(255 * (1 - abs(strength))))


def _auto_contrast(picture: "Image.Image", strength: float) -> "Image.Image":
    from PIL import ImageOps

    return ImageOps.autocontrast(picture)


def _equalize(picture: "Image.Image", strength: float) -> "Image.Image":
    from PIL import ImageOps

    return ImageOps.equalize(picture)


OPERATIONS: tuple[Operation, ...] = (
    _same,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _rotate,
    _brightness,
    _color,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _auto_contrast,
    _equalize,
)
