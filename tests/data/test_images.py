"""Images become upright 8-bit RGB, or an error that names the file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_files import png

from modalign.data.images import check_image, open_image
from modalign.data.records import Media
from modalign.data.signals import SignalError


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> Media:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return Media("image", data=buffer.getvalue())


def pixel(media: Media, at: tuple[int, int] = (0, 0)) -> object:
    check_image(media)
    image = open_image(media)
    assert image.mode == "RGB"
    return image.getpixel(at)


def declared_png(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def test_path_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png((1, 2, 3)))
    assert pixel(Media("image", path=str(tmp_path / "a.png"))) == (1, 2, 3)
    assert pixel(Media("image", data=png((1, 2, 3)))) == (1, 2, 3)


def test_exif_orientation_turns_the_image_upright() -> None:
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    media = encoded(image, "PNG", exif=exif)
    assert open_image(media).size == (2, 4)
    assert pixel(media, (1, 0)) == (255, 0, 0)


def test_broken_exif_leaves_the_image_as_it_lies() -> None:
    assert pixel(encoded(Image.new("RGB", (4, 2)), "JPEG", exif=b"Exif\0\0junk")) == (0, 0, 0)


def test_transparency_is_laid_over_white() -> None:
    assert pixel(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))) == (255, 255, 255)
    assert pixel(encoded(Image.new("LA", (2, 2), (0, 0)))) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 8, 7, 0, 0, 0])
    assert pixel(encoded(palette)) == (9, 8, 7)
    assert pixel(encoded(palette, transparency=0)) == (255, 255, 255)
    assert pixel(encoded(Image.new("RGB", (2, 2)), transparency=(0, 0, 0))) == (255, 255, 255)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_values_are_scaled(form: str) -> None:
    image = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    assert pixel(encoded(image, form)) == (128, 128, 128)


def test_grey_bilevel_cmyk_and_animation() -> None:
    assert pixel(encoded(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert pixel(encoded(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    assert pixel(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "TIFF")) == (0, 0, 0)
    frames = [Image.new("RGB", (2, 2), (255, 0, 0)), Image.new("RGB", (2, 2), (0, 0, 255))]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(animation) == (255, 0, 0)


def noise(form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), form).read()


BAD = {
    "truncated PNG": (noise("PNG")[:3000], "broken-media", "truncated or damaged"),
    "truncated JPEG": (noise("JPEG")[:1500], "broken-media", "truncated or damaged"),
    "JPEG without its end": (noise("JPEG")[:-20], "broken-media", "truncated or damaged"),
    "truncated WEBP": (noise("WEBP")[:500], "broken-media", "damaged"),
    "text": (b"<html>404</html>", "not-an-image", "starts with the text '<html>404</html>'"),
    "empty": (b"", "not-an-image", "the file is empty"),
    "bomb": (declared_png(60000, 2000), "image-too-large", "60000 x 2000 = 120,000,000 pixels"),
    "huge bomb": (declared_png(60000, 60000), "image-too-large", "[Ll]imit|exceeds"),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "not-an-image",
        "PS-Adobe",
    ),
    "float": (
        encoded(Image.new("F", (2, 2)), "TIFF").read(),
        "broken-media",
        "floating-point pixels",
    ),
    "32 bit": (
        encoded(Image.new("I", (2, 2), 1 << 20), "TIFF").read(),
        "broken-media",
        "outside 16 bits",
    ),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD)
def test_bad_image_names_file_and_reason(tmp_path: Path, name: str) -> None:
    content, kind, pattern = BAD[name]
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for function in (open_image, check_image):
        with pytest.raises(SignalError, match=pattern) as caught:
            function(Media("image", path=str(path)))
        assert caught.value.kind == kind
        assert str(caught.value).startswith(f"{path}: ")


def test_unreadable_paths(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path, "nul\0byte"):
        with pytest.raises(SignalError) as caught:
            open_image(Media("image", path=str(path)))
        assert caught.value.kind == "missing-media"


def test_limit_is_the_callers() -> None:
    with pytest.raises(SignalError, match="more than the limit of 11"):
        open_image(Media("image", data=png()), max_pixels=11)
    assert open_image(Media("image", data=png()), max_pixels=12).size == (4, 3)
