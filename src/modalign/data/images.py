"""Open images safely (with a size limit before decoding) as 8-bit RGB."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from modalign.data.modalities import Amount, Modality
from modalign.data.records import Media
from modalign.data.signals import SignalError, beginning, opened, refuse_thin, too_much_memory
from modalign.errors import first_line

MAX_PIXELS = 64_000_000
MAX_SCANS = 100  # of a progressive JPEG, each over all pixels; cameras write about ten
_SCAN = b"\xff\xda"  # begins a scan; cannot occur in coded pixels
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # of TIFF
# Only pixel formats: no plug-ins that start a program (EPS) or draw vectors.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


def open_image(media: Media, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to RGB, rotated according to its EXIF orientation.

    The first frame of an animation is taken. Transparent pixels are composited over white; 16-bit values
    are scaled to 8 bits; palettes, greys and CMYK are converted.

    Raises:
        SignalError: missing, damaged, no image, over `max_pixels`, or with pixels that have no
            obvious 8-bit form. The message names the file.
    """
    image = _decode(media, max_pixels)
    try:
        return _to_rgb(_upright(image))
    except (OSError, ValueError) as error:
        raise SignalError(
            media, f"cannot be converted to RGB ({error}): save it as PNG or JPEG"
        ) from None
    except MemoryError:
        raise too_much_memory(media) from None


def decode_image(media: Media, spec: dict[str, Any]) -> Image.Image:
    """Decode an image for an encoder's processor, which resizes it."""
    return open_image(media)


def check_image(media: Media, *, max_pixels: int = MAX_PIXELS) -> None:
    """Decode an image once to check that `open_image` will work.

    Raises:
        SignalError: as `open_image` does.
    """
    image = _decode(media, max_pixels, small=True)
    if image.mode in {"F", "I", "LAB"}:
        open_image(media, max_pixels=max_pixels)


def stored_size(media: Media) -> tuple[int, int]:
    """Read width and height from an image's header, before rotation.

    Raises:
        SignalError: missing, or not an image.
    """
    with _header(media) as (image, _):
        return image.size


@contextmanager
def _header(media: Media) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Open an image without decoding it; give it and its bytes."""
    with opened(media) as stream:
        try:
            image = Image.open(stream, formats=_formats())
        except UnidentifiedImageError:
            raise SignalError(
                media, "not a known image format: give PNG, JPEG or WebP", "not-an-image"
            ) from None
        except Exception as error:  # damage can cause any exception in a reader
            raise SignalError(
                media, f"has no readable header ({first_line(error)})", "not-an-image"
            ) from None
        with image:
            yield image, stream


def blank_image(width: int, height: int) -> Media:
    """Make a mid-grey image: valid, but without content."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (128, 128, 128)).save(buffer, format="PNG")
    return Media("image", data=buffer.getvalue())


def blank_like(media: Media) -> Media:
    """Make a blank image of the same size."""
    return blank_image(*stored_size(media))


def pixels(media: Media) -> list[Amount]:
    """Return the amount that a server limits: the pixels according to the header."""
    with _header(media) as (image, stream):
        count, sides = _to_decode(image)
        refuse_thin(media, *image.size)
        _refuse_scans(image, stream, media)
    return [Amount("image_pixels", count, f"{sides} pixels")]


def _decode(media: Media, max_pixels: int, *, small: bool = False) -> Image.Image:
    """Decode a whole image; `small` allows a faster reduced JPEG."""
    with opened(media) as stream:
        try:
            image = Image.open(stream, formats=_formats())
            _refuse_too_large(image, media, max_pixels)
            _refuse_scans(image, stream, media)
            if small:
                image.draft("RGB", (1, 1))
            image.load()
        except SignalError:
            raise
        except UnidentifiedImageError:
            raise SignalError(media, _what_instead(stream), "not-an-image") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise SignalError(
                media, f"{error} Shrink it or remove the row.", "image-too-large"
            ) from None
        except MemoryError:
            raise too_much_memory(media) from None
        except Exception as error:  # damage can cause any exception in a decoder
            raise SignalError(
                media, f"truncated or damaged image ({error}): copy it again"
            ) from None
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _refuse_too_large(image: Image.Image, media: Media, max_pixels: int) -> None:
    refuse_thin(media, *image.size)
    count, sides = _to_decode(image)
    if count > max_pixels:
        raise SignalError(
            media,
            f"{sides} = {count:,} pixels, more than the limit of {max_pixels:,}: shrink it",
            "image-too-large",
        )


def _to_decode(image: Image.Image) -> tuple[int, str]:
    """Return how many pixels a decoder allocates, and the sides in words: a TIFF's tiles are whole ones."""
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH), tags.get(_TILE_LENGTH)
    width, height = (
        -(-side // whole) * whole if isinstance(whole, int) and whole > 0 else side
        for side, whole in zip(image.size, tile, strict=True)
    )
    tiles = "" if (width, height) == image.size else "tiles of "
    return width * height, f"{tiles}{width} x {height}"


def _refuse_scans(image: Image.Image, stream: BinaryIO, media: Media) -> None:
    """Refuse a JPEG of which every one of many scans is decoded over the whole picture."""
    if not image.info.get("progressive"):
        return
    stream.seek(0)
    scans = stream.read().count(_SCAN)
    if scans > MAX_SCANS:
        raise SignalError(
            media,
            f"a progressive JPEG of {scans} scans, more than the limit of {MAX_SCANS}: save it anew",
            "image-too-large",
        )


def _what_instead(stream: BinaryIO) -> str:
    shown = beginning(stream)
    if shown is None:
        return "the file is empty: copy it again"
    return f"not an image of a known format{shown}: save it as PNG or JPEG"


def _upright(image: Image.Image) -> Image.Image:
    # A damaged EXIF block does not affect the pixels: the image is used without rotation.
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError("integer pixels outside 16 bits have no defined white")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


IMAGE = Modality(
    name="image",
    words="an image",
    check=check_image,
    blank=blank_like,
    encoder="modalign.encoders.image",
    loader="modalign.models.encoders.image",
    endings=(
        *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"),
        *(".avif", ".jp2"),
    ),
    settings=(
        ("layer", "feature_layer"),
        ("image_size", "image_size"),
        ("patch_size", "patch_size"),
    ),
    raw_patches=True,
    any_size=True,
    amounts=pixels,
    decode=decode_image,
    picture=Media.read,
    title="A language model that sees",
    chat_part='{"type": "image", "url": "photo.jpg"}',
)
