"""Variants of a picture that show the same thing: slightly shifted, scaled or brightened.

Nothing here flips or crops a picture: a flipped digit is another digit, and cropping may lose what the
edit is about. The variants are the same in every run.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

# scale, shift right and down (as shares of width and height), brightness, contrast
_VARIANTS = (
    (1.00, 0.03, 0.00, 1.00, 1.00),
    (1.00, -0.03, 0.03, 1.10, 1.00),
    (0.95, 0.00, 0.00, 1.00, 0.85),
    (1.05, 0.00, -0.02, 0.90, 1.15),
    (0.97, 0.02, 0.03, 1.05, 1.10),
    (1.00, -0.02, -0.03, 0.95, 0.90),
    (1.03, -0.03, 0.00, 1.10, 0.95),
    (0.95, 0.03, -0.03, 0.90, 1.05),
)
MOST = len(_VARIANTS)


def variants(image: Image.Image, count: int) -> list[Image.Image]:
    """Make the first ``count`` variants of an RGB picture, which do not include the picture itself."""
    return [_varied(image, *what) for what in _VARIANTS[:count]]


def _varied(
    image: Image.Image, scale: float, right: float, down: float, brightness: float, contrast: float
) -> Image.Image:
    width, height = image.size
    # The affine map takes coordinates of the result to coordinates of the source.
    x = width / 2 - (width / 2 + right * width) / scale
    y = height / 2 - (height / 2 + down * height) / scale
    moved = image.transform(
        image.size,
        Image.Transform.AFFINE,
        (1 / scale, 0, x, 0, 1 / scale, y),
        resample=Image.Resampling.BICUBIC,
        fillcolor=_border(image),
    )
    return ImageEnhance.Contrast(ImageEnhance.Brightness(moved).enhance(brightness)).enhance(
        contrast
    )


def _border(image: Image.Image) -> tuple[int, int, int]:
    """Return the typical colour along the edges, to fill what a moved picture uncovers."""
    pixels = np.asarray(image)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(edges, axis=0).astype(int).tolist()
    return red, green, blue
