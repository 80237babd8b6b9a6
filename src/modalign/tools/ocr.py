"""Read text in pictures: rapidocr (onnxruntime, its models in its wheel) or the program tesseract."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.errors import UsageError, extra
from modalign.tools.base import LINES, HashFile, Json, Signature, Tool, ToolError, ToolTimeoutError
from modalign.tools.onnx_parameters import onnx_parameters

# rapidocr's settings -> part of the file name of the model in its wheel
MODELS = {"Det": "det", "Cls": "cls", "Rec": "rec"}
WORD_LEVEL = "5"  # of tesseract's table
MOST_ERROR = 200


def ocr_tool(engine: str, min_score: float, language: str | None, **settings: Any) -> Tool:
    """Return an OCR tool from its configuration.

    Raises:
        UsageError: the engine is not installed, or does not take the option.
    """
    if engine == "tesseract":
        return Tesseract(min_score, language, **settings)
    if language is not None:
        raise UsageError("rapidocr has no language option: remove it, or use tesseract")
    return RapidOcr(min_score, **settings)


class RapidOcr(Tool):
    """Lines of text with confidence and box; recognises Latin and Chinese script.

    Raises:
        UsageError: rapidocr or its models are not installed.
    """

    def __init__(self, min_score: float, **settings: Any) -> None:
        super().__init__(**settings, signature=Signature(result=LINES))
        self._min_score = min_score
        self._models = _models()

    @cached_property
    def _engine(self) -> Any:
        from rapidocr import RapidOCR

        given: dict[str, Any] = {
            "Global.log_level": "error",
            "Global.text_score": 0.0,
            # As for torch and BLAS, more threads than cores make it many times slower.
            "EngineConfig.onnxruntime.intra_op_num_threads": int(
                os.environ.get("OMP_NUM_THREADS", "-1")
            ),
        }
        files = {f"{part}.model_path": str(path) for part, path in self._models.items()}
        return RapidOCR(params={**given, **files})

    def load(self) -> None:
        """Load the models."""
        _ = self._engine

    @cached_property
    def parameters(self) -> int:
        """Count detection, orientation and recognition in the ONNX files."""
        return sum(onnx_parameters(path) for path in self._models.values())

    def run(self, medium: Media, **arguments: Any) -> list[dict[str, Any]]:
        """Read a picture's lines in rapidocr's order, top to bottom."""
        blue_first = np.asarray(open_image(medium))[:, :, ::-1]
        found = self._engine(np.ascontiguousarray(blue_first))
        if not found.txts:
            return []
        return [
            {"text": text, "score": round(float(score), 4), "box": _upright(corners)}
            for text, score, corners in zip(found.txts, found.scores, found.boxes, strict=True)
            if score >= self._min_score
        ]

    def identity(self, hash_file: HashFile) -> Json:
        """Return the library's version, its models and the threshold."""
        hashes = [hash_file(path) for path in self._models.values()]
        return ["rapidocr", version("rapidocr"), *hashes, self._min_score]


class Tesseract(Tool):
    """The installed program; each call is a process that is terminated at the timeout.

    Raises:
        UsageError: tesseract is not installed.
    """

    keeps_deadline = True

    def __init__(self, min_score: float, language: str | None, **settings: Any) -> None:
        super().__init__(**settings, signature=Signature(result=LINES))
        program = shutil.which("tesseract")
        if program is None:
            raise UsageError("tesseract is not installed: install it, or use engine rapidocr")
        self._program = program
        self._min_score = min_score
        self._language = ["-l", language] if language else []

    def run(self, medium: Media, **arguments: Any) -> list[dict[str, Any]]:
        """Read a picture's lines.

        Raises:
            ToolTimeoutError, ToolError: no answer in time, or a failure with the program's message.
        """
        picture = io.BytesIO()
        open_image(medium).save(picture, "PNG")
        command = [self._program, "stdin", "stdout", *self._language, "tsv"]
        try:
            done = subprocess.run(
                command,
                input=picture.getvalue(),
                capture_output=True,
                timeout=self.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ToolTimeoutError(f"tesseract gave no answer within {self.timeout:g} s") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[:MOST_ERROR]
            raise ToolError(f"tesseract ended with code {done.returncode}: {said}")
        return tesseract_lines(done.stdout.decode(errors="replace"), self._min_score)

    @cached_property
    def _version(self) -> str:
        said = subprocess.run(
            [self._program, "--version"], capture_output=True, timeout=self.timeout, check=False
        )
        return said.stdout.decode(errors="replace").partition("\n")[0]

    def identity(self, hash_file: HashFile) -> Json:
        """Return the program's version, language and threshold; not its language data."""
        return ["tesseract", self._version, self._language, self._min_score]


def tesseract_lines(table: str, min_score: float) -> list[dict[str, Any]]:
    """Lines from tesseract's TSV of words: the score of a line is the mean confidence of its words."""
    words: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE):
        if row["level"] == WORD_LEVEL and row["text"] and row["text"].strip():
            place = tuple(row[key] for key in ("page_num", "block_num", "par_num", "line_num"))
            words.setdefault(place, []).append(row)
    found = []
    for line in words.values():
        score = sum(float(word["conf"]) for word in line) / len(line) / 100
        if score >= min_score:
            text = " ".join(word["text"] for word in line)
            found.append({"text": text, "score": round(score, 4), "box": _around(line)})
    return found


def _models() -> dict[str, Path]:
    """Return the models in rapidocr's wheel explicitly, so that nothing is ever downloaded."""
    try:
        import rapidocr

        version("onnxruntime")  # rapidocr needs it, but reports that late
    except ImportError as error:
        raise UsageError(
            f"reading text needs rapidocr and onnxruntime ({error}): {extra('tools')}"
        ) from None
    folder = Path(rapidocr.__file__).parent / "models"
    found = {}
    for part, name in MODELS.items():
        files = sorted(folder.glob(f"*_{name}_*.onnx"))
        if len(files) != 1:
            raise UsageError(
                f"{folder} contains {len(files)} {name} models, not 1: reinstall rapidocr"
            )
        found[part] = files[0]
    return found


def _upright(corners: Any) -> list[float]:
    """Return the upright box around four corners (4, 2)."""
    points = np.asarray(corners, dtype=float)
    return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]


def _around(words: list[dict[str, str]]) -> list[float]:
    edges = [[float(word[key]) for key in ("left", "top", "width", "height")] for word in words]
    left, top, width, height = np.array(edges).T
    return [left.min(), top.min(), (left + width).max(), (top + height).max()]
