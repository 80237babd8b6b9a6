"""Opening images: safely (a size limit that holds before decoding) and in one form (8-bit RGB)."""

from __future__ import annotations

import functools
import io
from contextlib import suppress
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from modalign.data.records import Media
from modalign.errors import DataError

MAX_PIXELS = 64_000_000
# Pixel formats only: no plug-in that starts a program (EPS) or draws vectors.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


class ImageError(DataError):
    """An image that cannot be used; `kind` says why, in the words of `Problem.kind`."""

    def __init__(self, kind: str, media: Media, message: str) -> None:
        super().__init__(f"{media.label}: {message}")
        self.kind = kind
        self.reason = message
        self.media = media


def open_image(media: Media, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to RGB, turned upright as its EXIF orientation says.

    The first frame of an animation is taken. Transparent pixels are laid over white; 16-bit values
    are scaled to 8 bits; palettes, greys and CMYK are converted.

    Raises:
        ImageError: missing, damaged, no image, over `max_pixels`, or with pixels that have no
            obvious 8-bit form. The message names the file.
    """
    image = _decode(media, max_pixels)
    try:
        return _to_rgb(_upright(image))
    except (OSError, ValueError) as error:
        raise ImageError(
            "broken-media", media, f"cannot be converted to RGB ({error}): save it as PNG or JPEG"
        ) from None


def check_image(media: Media, *, max_pixels: int = MAX_PIXELS) -> None:
    """Decode an image once to see that `open_image` will work.

    Raises:
        ImageError: as `open_image` does.
    """
    image = _decode(media, max_pixels, small=True)
    if image.mode in {"F", "I", "LAB"}:
        open_image(media, max_pixels=max_pixels)


def stored_size(media: Media) -> tuple[int, int]:
    """Width and height as an image's header states them, before it is turned upright.

    Raises:
        ImageError: missing, or no image.
    """
    try:
        with _stream(media) as stream, Image.open(stream, formats=_formats()) as image:
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError("not-an-image", media, f"has no readable header ({error})") from None


def blank_image(width: int, height: int) -> Media:
    """A mid-grey image: shows nothing, yet is a valid image."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (128, 128, 128)).save(buffer, format="PNG")
    return Media("image", data=buffer.getvalue())


def blank_like(media: Media) -> Media:
    """A blank image of another one's size."""
    with Image.open(io.BytesIO(media.read())) as image:
        return blank_image(*image.size)


def _decode(media: Media, max_pixels: int, *, small: bool = False) -> Image.Image:
    """Read all of an image's bytes; `small` lets JPEG give a miniature, which is faster."""
    try:
        stream = _stream(media)
    except FileNotFoundError:
        raise ImageError(
            "missing-media", media, "the file does not exist: put it there or correct the path"
        ) from None
    except (OSError, ValueError) as error:
        raise ImageError("missing-media", media, f"the file cannot be read ({error})") from None
    with stream:
        try:
            image = Image.open(stream, formats=_formats())
            _refuse_too_large(image, media, max_pixels)
            if small:
                image.draft("RGB", (1, 1))
            image.load()
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError("not-an-image", media, _what_instead(stream)) from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(
                "image-too-large", media, f"{error} Shrink it or remove the row."
            ) from None
        except Exception as error:  # decoders raise whatever the damage happens to cause
            raise ImageError(
                "broken-media", media, f"truncated or damaged image ({error}): copy it anew"
            ) from None
    return image


def _stream(media: Media) -> BinaryIO:
    if media.data is not None:
        return io.BytesIO(media.data)
    assert media.path is not None
    return open(media.path, "rb")


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _refuse_too_large(image: Image.Image, media: Media, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            "image-too-large",
            media,
            f"{width} x {height} = {width * height:,} pixels, more than the limit of "
            f"{max_pixels:,}: shrink it, or raise max_pixels",
        )


def _what_instead(stream: BinaryIO) -> str:
    stream.seek(0)
    head = stream.read(40)
    if not head:
        return "the file is empty: copy it anew"
    text = head.decode("utf-8", errors="ignore").strip().partition("\n")[0]
    shown = f"; it starts with the text {text!r}" if text and text.isprintable() else ""
    return f"not an image of a known format{shown}: save it as PNG or JPEG"


def _upright(image: Image.Image) -> Image.Image:
    # A damaged EXIF block says nothing about the pixels: the image is taken as it lies.
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed white")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError("integer pixels outside 16 bits have no fixed white")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")
