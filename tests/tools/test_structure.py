"""A scene's structure in lines, on NLVR's own records where they are."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import tiny
from modalign.data.records import Media
from modalign.tools.base import ToolError
from modalign.tools.build import build_chain
from modalign.tools.registry import chain_spec
from modalign.tools.structure import structure_lines

BOXES: list[list[dict[str, Any]]] = [
    [{"y_loc": 47, "type": "circle", "color": "Yellow", "x_loc": 90, "size": 10}],
    [],
    [
        {"y_loc": 80, "type": "triangle", "color": "#0099ff", "x_loc": 3, "size": 20},
        {"y_loc": 1, "type": "square", "color": "Black", "x_loc": 70, "size": 30},
    ],
]
LINES = [
    "box 1: yellow circle small 90 47",
    "box 2: empty",
    "box 3: blue triangle medium 3 80, black square big 70 1",
]


def test_one_line_per_box() -> None:
    assert structure_lines(BOXES) == LINES
    assert structure_lines({"boxes": BOXES}) == LINES
    assert structure_lines(BOXES[2]) == [LINES[2].replace("3:", "1:", 1)]


def test_detections_are_structure_too() -> None:
    assert structure_lines([{"label": "cat"}, {"label": "dog", "size": 7}]) == ["box 1: cat, dog 7"]


@pytest.mark.parametrize("annotations", [None, "a cat", {"caption": "a cat"}, [1, 2]])
def test_what_is_no_structure_is_told(annotations: Any) -> None:
    with pytest.raises(ToolError):
        structure_lines(annotations)


def test_the_chain_reads_the_annotations() -> None:
    chain = build_chain(chain_spec("structure"), len)
    medium = Media("image", data=b"x", annotations={"boxes": BOXES[:1]})
    assert chain.text(medium) == LINES[0] + "\n"
    assert chain.text(Media("image", data=b"x")) == "no result\n"
    assert [(one.kind, one.count) for one in chain.problems()] == [("raised", 1)]


def test_every_scene_of_nlvr_can_be_read_back() -> None:
    file = tiny.SHARED / "data/nlvr/nlvr.json"
    if not file.exists():
        pytest.skip("../shared/data/nlvr is not there")
    colours = {"#0099ff": "blue", "Yellow": "yellow", "Black": "black"}
    sizes = {"small": 10, "medium": 20, "big": 30}
    for row in json.loads(file.read_text()):
        read = []
        for line in structure_lines(row["boxes"]):
            found = re.findall(r"(\w+) (\w+) (small|medium|big) (\d+) (\d+)", line)
            read.append([(c, t, sizes[s], int(x), int(y)) for c, t, s, x, y in found])
        stated = [
            [(colours[o["color"]], o["type"], o["size"], o["x_loc"], o["y_loc"]) for o in box]
            for box in row["boxes"]
        ]
        assert read == stated
