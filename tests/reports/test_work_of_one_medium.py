"""Media of a row that hold hours of work: refused with file and row, where no server stands between.

An eight-channel FLAC of silence took 51 s and a video of 120,000 frames minutes, in ``train``, ``ask``, ``eval``
and the checks of data, before anything was said.
"""

from __future__ import annotations

import io
import itertools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from modalign.data import audio, patience
from modalign.data.audio import check_audio, open_audio
from modalign.data.patience import VARIABLE, allowed_seconds
from modalign.data.pieces import pieces_of_pdf
from modalign.data.readers import read_records
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.validation import BrokenData, validate
from modalign.data.video import amounts, check_video, grey_video, open_video
from modalign.errors import DataError, UsageError
from reports.threads import reported, tried

Cli = Callable[..., tuple[int, str, str]]
RATE = 8_000


def flac(seconds: float, channels: int = 1) -> bytes:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    tone = np.sin(np.arange(round(seconds * RATE)) / 5)[:, None].repeat(channels, axis=1) / 2
    soundfile.write(file, tone, RATE, format="FLAC")
    return file.getvalue()


def video(frames: int) -> bytes:
    pytest.importorskip("av")
    made = grey_video(16, 16, np.arange(frames) / 500)
    assert made.data is not None
    return made.data


def refused(run: Callable[[], Any]) -> SignalError:
    with pytest.raises(SignalError) as found:
        run()
    return found.value


@reported("vllm-project/vllm#57525")
@pytest.mark.parametrize("run", [check_video, amounts, lambda medium: open_video(medium, 2)])
def test_a_video_of_many_frames(
    run: Callable[[Media], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    medium = Media("video", data=video(400))
    run(medium)
    monkeypatch.setenv(VARIABLE, "0.0001")
    error = refused(lambda: run(medium))
    assert error.kind == "too-much-work"
    assert "not decoded within 0.0001 s" in error.reason
    assert "--decode-seconds 0.0002" in error.reason


@reported("ietf-wg-cellar/flac-specification#167")
@pytest.mark.parametrize("run", [check_audio, lambda medium: open_audio(medium, 16_000)])
def test_a_long_recording(run: Callable[[Media], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    medium = Media("audio", data=flac(60))
    run(medium)
    monkeypatch.setenv(VARIABLE, "0.0001")
    assert refused(lambda: run(medium)).kind == "too-much-work"


@reported("ietf-wg-cellar/flac-specification#167")
def test_samples_of_all_channels_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = bytearray(flac(1, channels=8))
    check_audio(Media("audio", data=bytes(plain)))
    assert plain[:8] == b"fLaC\0\0\0\x22"
    promised = bytearray(
        plain
    )  # STREAMINFO: the last 36 of the 64 bits behind the frame sizes are the length
    promised[18:26] = (int.from_bytes(plain[18:26], "big") >> 36 << 36 | 600 * RATE * 100).to_bytes(
        8, "big"
    )
    monkeypatch.setattr(audio, "MAX_SAMPLES", 8 * RATE)
    check_audio(Media("audio", data=bytes(plain)))
    early = refused(lambda: check_audio(Media("audio", data=bytes(promised))))
    assert "600 s of 8 channels at 8,000 Hz are 38,400,000 samples" in early.reason
    monkeypatch.setattr(audio, "MAX_SAMPLES", 4 * RATE)
    said = refused(lambda: open_audio(Media("audio", data=bytes(plain)), RATE)).reason
    assert "8 channels" in said
    assert "more than the limit of 32,000" in said
    # What is cropped is not decoded, so it does not count.
    assert len(open_audio(Media("audio", data=bytes(plain)), RATE, 0.25, crop=True)) == RATE // 4


@reported("vllm-project/vllm#57525")
def test_file_row_and_remedy_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short.mkv").write_bytes(video(2))
    (tmp_path / "long.mkv").write_bytes(video(400))
    names = [*["short"] * 10, "long"]
    rows = [{"video": f"{name}.mkv", "question": "what?", "answer": "grey"} for name in names]
    path = tiny.write_jsonl(tmp_path / "clips.jsonl", rows)
    data = read_records(path, modalities=("video",))
    assert validate(data).report.kept == 11
    monkeypatch.setenv(VARIABLE, "0.2")
    looks = itertools.count()  # a millisecond of computing to each piece
    monkeypatch.setattr(patience.time, "thread_time", lambda: next(looks) / 1000)
    with pytest.raises(
        BrokenData, match=r"clips\.jsonl:11: video .*long\.mkv: not decoded within 0\.2 s"
    ):
        validate(data, workers=1)
    kept = validate(data, workers=1, skip_broken="10%").report  # the others are used
    assert (kept.kept, kept.kinds) == (10, {"too-much-work": 1})


@reported("vllm-project/vllm#57525")
def test_more_time_is_had_for_the_asking(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0.0001")
    assert cli("--decode-seconds", "100", "methods")[0] == 0
    assert allowed_seconds() == 100  # for this process and those that it starts


@tried("values of the option and of the variable that are no number of seconds")
@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon", ""])
def test_what_is_no_number_of_seconds(
    value: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(UsageError, match=VARIABLE):
        allowed_seconds()
    monkeypatch.delenv(VARIABLE)
    code, _, err = cli("--decode-seconds", value, "methods")
    assert code == 2, err
    assert "decode-seconds" in err


def pdf(drawing: bytes) -> bytes:
    """A PDF of one page."""
    packed = zlib.compress(drawing, 9)
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(packed)}/Filter/FlateDecode>>stream\n".encode() + packed + b"\nendstream",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    made, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        places.append(b"%010d 00000 n \n" % len(made))
        made += b"%d 0 obj" % number + part + b"\nendobj\n"
    head = b"xref\n0 6\n0000000000 65535 f \n" + b"".join(places)
    return made + head + b"trailer<</Root 1 0 R/Size 6>>\nstartxref\n%d\n" % len(made) + b"%%EOF"


@tried("a PDF of 63 kB with two million lines on its page, in `app documents`")
def test_a_document_of_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pdfplumber")
    (tmp_path / "plain.pdf").write_bytes(pdf(b"BT /F1 12 Tf 100 700 Td (Hello there) Tj ET"))
    (piece,) = pieces_of_pdf(tmp_path / "plain.pdf")
    assert (piece.text, piece.page) == ("Hello there", 1)
    (tmp_path / "lines.pdf").write_bytes(pdf(b"0 0 m 10 10 l S\n" * 1_000_000))
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(DataError, match=r"lines\.pdf: not read within 1 s: .*--decode-seconds 2"):
        pieces_of_pdf(tmp_path / "lines.pdf")


@tried("a page of 1 kB with thirty cells that cover a million places each, in `app documents`")
def test_a_table_of_merged_cells(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<table><tr>" + "<td rowspan=1000 colspan=1000>1</td>" * 30 + "</tr></table>")
    code, _, err = cli("app", "documents", "run", page, "--field", "total")
    assert code == 3
    assert "page.html: a table whose cells cover 30,000,000 places" in err
