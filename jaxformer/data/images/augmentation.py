"""What training does to pictures at random: a function of each row's own numbers alone.

The parts of `data.images.augment` take their numbers from fixed places of a row's stream, so that
one that is switched on leaves the numbers of the others as they are.
"""

from typing import Any

import numpy as np

from jaxformer.config.images import AugmentConfig
from jaxformer.data.draws import numbers, uniforms
from jaxformer.data.images.rand_augment import rand_augment

TRIES = 10  # to draw a part that lies inside of the picture
SHIFT, FLIP, ERASE, CROP, NOISE, RAND_AUGMENT = 0, 2, 3, 100, 1 << 20, 1 << 16

ASPECTS = (3 / 4, 4 / 3)  # width / height of a crop (Szegedy et al., 2015, arXiv:1409.4842)
ERASED = (0.02, 1 / 3)  # of the area, with height / width in:
ERASED_ASPECTS = (0.3, 1 / 0.3)


def augmented(pictures: np.ndarray, seeds: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """The pictures as training sees them, uint8 [rows, height, width, channels].

    Args:
        seeds: of the numbers of each row, see `draws.streams`.
    """
    if config.pad is not None:
        pictures = _shifted(pictures, uniforms(seeds, SHIFT, 2), config.pad)
    if config.crop is not None:
        pictures = _cropped(pictures, seeds, config.crop)
    if config.flip:
        pictures = _flipped(pictures, uniforms(seeds, FLIP, 1)[:, 0] < 0.5)
    if config.rand_augment is not None:
        layers, magnitude = config.rand_augment.layers, config.rand_augment.magnitude
        draws = uniforms(seeds, RAND_AUGMENT, 2 * layers).reshape(-1, layers, 2)
        pairs = zip(pictures, draws, strict=True)
        changed = [rand_augment(picture, each, magnitude) for picture, each in pairs]
        pictures = np.stack(changed) if changed else pictures
    if config.erase:
        pictures = _erased(pictures, seeds, config.erase)
    return pictures


def _shifted(pictures: np.ndarray, draws: np.ndarray, pad: int) -> np.ndarray:
    """Every picture moved by up to `pad` pixels along each side; what is uncovered is black."""
    height, width = pictures.shape[1:3]
    shifts = (draws * (2 * pad + 1)).astype(int) - pad  # [rows, 2], down and right
    moved = np.zeros_like(pictures)
    for row, (down, right) in enumerate(shifts.tolist()):
        moved[row, max(down, 0) : height + down, max(right, 0) : width + right] = pictures[
            row, max(-down, 0) : height - down, max(-right, 0) : width - right
        ]
    return moved


def _flipped(pictures: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    flipped = pictures.copy()
    flipped[chosen] = pictures[chosen, :, ::-1]
    return flipped


def boxes(seeds: np.ndarray, height: int, width: int, areas: tuple[float, ...]) -> np.ndarray:
    """The part of each picture that a random resized crop shows, [rows, 4]: left, top, width and
    height. Its share of the area is uniform, and the logarithm of its aspect; the first of ten that
    lies inside is taken, or else as much of the tenth as does."""
    draws = uniforms(seeds, CROP, 4 * TRIES).reshape(-1, TRIES, 4)
    area = height * width * (areas[0] + (areas[1] - areas[0]) * draws[..., 0])  # [rows, tries]
    low, high = np.log(ASPECTS)
    aspect = np.exp(low + (high - low) * draws[..., 1])
    across, down = np.sqrt(area * aspect), np.sqrt(area / aspect)
    fits = (across <= width) & (down <= height)
    first = np.where(fits.any(axis=1), fits.argmax(axis=1), TRIES - 1)
    rows = np.arange(len(seeds))
    across = np.minimum(across[rows, first], width)
    down = np.minimum(down[rows, first], height)
    left, top = (draws[rows, first, 2:] * np.stack([width - across, height - down], axis=1)).T
    return np.stack([left, top, across, down], axis=1)


def _cropped(pictures: np.ndarray, seeds: np.ndarray, areas: tuple[float, ...]) -> np.ndarray:
    from PIL import Image

    height, width = pictures.shape[1:3]
    cut = np.empty_like(pictures)
    for row, (left, top, across, down) in enumerate(boxes(seeds, height, width, areas).tolist()):
        box = (left, top, min(left + across, width), min(top + down, height))
        picture = as_picture(pictures[row])
        resized = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
        cut[row] = np.asarray(resized).reshape(cut.shape[1:])
    return cut


def _erased(pictures: np.ndarray, seeds: np.ndarray, share: float) -> np.ndarray:
    """A rectangle of noise in a share of the pictures, where it fits into the picture."""
    height, width = pictures.shape[1:3]
    draws = uniforms(seeds, ERASE, 5)
    area = height * width * (ERASED[0] + (ERASED[1] - ERASED[0]) * draws[:, 1])
    low, high = np.log(ERASED_ASPECTS)
    aspect = np.exp(low + (high - low) * draws[:, 2])
    down = np.clip(np.rint(np.sqrt(area * aspect)), 1, height).astype(int)
    across = np.clip(np.rint(np.sqrt(area / aspect)), 1, width).astype(int)
    top = (draws[:, 3] * (height - down + 1)).astype(int)
    left = (draws[:, 4] * (width - across + 1)).astype(int)
    erased = pictures.copy()
    for row in np.flatnonzero(draws[:, 0] < share):
        part = erased[row, top[row] : top[row] + down[row], left[row] : left[row] + across[row]]
        noise = numbers(seeds[row], np.arange(NOISE, NOISE + part.size))
        part[...] = (noise >> np.uint64(56)).reshape(part.shape)
    return erased


def as_picture(picture: np.ndarray) -> Any:
    """Pixels [height, width, channels] as a picture of Pillow."""
    from PIL import Image

    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
