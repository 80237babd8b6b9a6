"""Reading text: rapidocr on a rendered picture, tesseract's table, parameters counted in ONNX files."""

from __future__ import annotations

import io
import math
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from modalign.data.images import blank_image
from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.tools.build import build_chain, build_tool
from modalign.tools.guard import call_safely
from modalign.tools.ocr import tesseract_lines
from modalign.tools.onnx_parameters import onnx_parameters
from modalign.tools.registry import chain_spec
from modalign.tools.spec import OcrSpec

PLACES = ("level", "page_num", "block_num", "par_num", "line_num", "word_num")
HEAD = (*PLACES, "left", "top", "width", "height", "conf", "text")
WORDS = [
    (5, 1, 1, 1, 1, 1, 10, 5, 30, 12, 96.0, "Total:"),
    (5, 1, 1, 1, 1, 2, 50, 4, 20, 14, 90.0, '3"50'),
    (4, 1, 1, 1, 2, 0, 10, 25, 60, 12, -1, ""),
    (5, 1, 1, 1, 2, 1, 10, 25, 60, 12, 20.0, "smudge"),
    (5, 1, 2, 1, 1, 1, 10, 45, 60, 12, 99.0, "Thanks"),
    (5, 1, 2, 1, 1, 2, 80, 45, 5, 12, 95.0, " "),
]
TABLE = "\n".join("\t".join(map(str, row)) for row in [HEAD, *WORDS]) + "\n"


def picture() -> Media:
    """Two lines of print."""
    image = Image.new("RGB", (420, 160), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(32)
    draw.text((20, 20), "INVOICE 2041", fill="black", font=font)
    draw.text((20, 90), "Total: 37.50 EUR", fill="black", font=font)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Media("image", data=buffer.getvalue())


def test_rapidocr_reads_print() -> None:
    pytest.importorskip("rapidocr")
    chain = build_chain(chain_spec("ocr"), lambda text: len(text.split()))
    assert chain.text(picture()) == "ocr: INVOICE 2041; Total: 37.50 EUR\n"
    outcome = call_safely(chain.uses[0].tool, picture())
    first, second = outcome.lines
    assert first.box is not None
    assert second.box is not None
    assert first.box[3] < second.box[1]  # one above the other
    assert min(first.score, second.score) > 0.9
    assert chain.cost().parameters == chain.uses[0].tool.parameters > 1_000_000
    assert call_safely(chain.uses[0].tool, blank_image(60, 60)).result == []


def test_rapidocr_takes_no_language() -> None:
    with pytest.raises(UsageError, match="use tesseract"):
        build_tool(OcrSpec(language="deu"))


def test_words_of_tesseract_become_lines() -> None:
    assert tesseract_lines(TABLE, 0.5) == [
        {"text": 'Total: 3"50', "score": 0.93, "box": [10, 4, 70, 18]},
        {"text": "Thanks", "score": 0.99, "box": [10, 45, 70, 57]},
    ]
    assert len(tesseract_lines(TABLE, 0.1)) == 3


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program called tesseract on the path: a shell script."""

    def put(script: str) -> None:
        file = tmp_path / "tesseract"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return put


def test_tesseract_is_run(program: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text(TABLE)
    program(f'echo "$@" > {tmp_path}/said; cat > {tmp_path}/given; cat {tmp_path}/table.tsv')
    tool = build_tool(OcrSpec(engine="tesseract", language="eng+deu"))
    assert call_safely(tool, picture()).text == 'Total: 3"50\nThanks'
    assert (tmp_path / "said").read_text() == "stdin stdout -l eng+deu tsv\n"
    assert Image.open(tmp_path / "given").size == (420, 160)


@pytest.mark.parametrize(
    ("script", "problem", "message"),
    [
        (
            "cat > /dev/null; echo 'no such language' >&2; exit 1",
            "raised",
            "code 1: no such language",
        ),
        ("exec sleep 30", "timeout", "no answer within 0.3 s"),
    ],
)
def test_tesseract_that_fails(
    program: Callable[[str], None], script: str, problem: str, message: str
) -> None:
    program(script)
    outcome = call_safely(build_tool(OcrSpec(engine="tesseract", timeout=0.3)), picture())
    assert outcome.problem == problem
    assert message in outcome.message


def test_tesseract_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="tesseract is not installed"):
        build_tool(OcrSpec(engine="tesseract"))


def test_parameters_are_counted_in_the_file(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"

    def varint(value: int) -> bytes:
        more = value >> 7
        return bytes([value & 0x7F | (0x80 if more else 0)]) + (varint(more) if more else b"")

    def sub(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    def tensor(kind: int, *shape: int, packed: bool) -> bytes:
        sizes = b"".join(map(varint, shape))
        dimensions = sub(1, sizes) if packed else b"".join(b"\x08" + varint(n) for n in shape)
        return dimensions + b"\x10" + varint(kind) + sub(9, bytes(4 * math.prod(shape)))

    constant = sub(
        1, sub(4, b"Constant") + sub(5, sub(1, b"value") + sub(5, tensor(10, 7, packed=True)))
    )
    graph = sub(5, tensor(1, 300, 5, packed=False)) + sub(5, tensor(7, 4, packed=True)) + constant
    model.write_bytes(b"\x08\x0a" + sub(7, graph) + sub(8, b"\x10\x11"))
    assert onnx_parameters(model) == 300 * 5 + 7  # the int64 tensor is a shape, no weight
