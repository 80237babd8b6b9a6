"""Scenes: disjoint scans, right answers, balance."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from modalign.starter.scenes import (
    SIDE,
    TRAINED_SKILLS,
    TRANSFER_SKILL,
    draw_for_skill,
    draw_scene,
    render,
    scans,
    split_scans,
)

NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
]  # fmt: skip
PLACES = {
    "top left": [0], "top right": [1], "bottom left": [2], "bottom right": [3],
    "left": [0, 2], "right": [1, 3], "top": [0, 1], "bottom": [2, 3],
}  # fmt: skip
SPLITS = ("train", "val", "eval")


def right_answer(cells: tuple[int | None, ...], question: str) -> str:
    """The answer from the cells alone, by another way than the questions are made."""
    there = [digit for digit in cells if digit is not None]
    if found := re.fullmatch(r"which digit is on the (.+)\?", question):
        (digit,) = [cells[place] for place in PLACES[found[1]] if cells[place] is not None]
        return NUMBERS[digit or 0]
    if found := re.fullmatch(r"is there a (\w+)\?", question):
        return "yes" if NUMBERS.index(found[1]) in there else "no"
    ways = {
        "which digit is this?": lambda: NUMBERS[there[0]],
        "how many digits are there?": lambda: NUMBERS[4 - cells.count(None)],
        "which digit is larger?": lambda: NUMBERS[sorted(there)[1]],
        "which digit is smaller?": lambda: NUMBERS[sorted(there)[0]],
        "is the digit even or odd?": lambda: ("even", "odd")[there[0] & 1],
        "what is the sum of the digits?": lambda: NUMBERS[there[0] + there[1]],
        "which number comes next?": lambda: NUMBERS[there[0] + 1],
    }
    return ways[question]()


def test_no_scan_is_in_two_splits():
    rows = np.concatenate([split_scans(split) for split in SPLITS])
    assert sorted(rows) == list(range(len(scans()[1])))
    rng = np.random.default_rng(0)
    for split in SPLITS:
        drawn = {row for _ in range(200) for row in draw_scene(rng, split).scans}
        assert drawn <= {int(row) for row in split_scans(split)}


@pytest.mark.parametrize("skill", [*TRAINED_SKILLS, TRANSFER_SKILL])
def test_answers_are_right(skill):
    rng = np.random.default_rng(1)
    for _ in range(300):
        scene, question = draw_for_skill(rng, "eval", skill)
        assert question.skill == skill
        assert question.answer == right_answer(scene.cells, question.text)
        if question.text.startswith("which digit is") and "larger" in question.text:
            assert len(set(scene.digits)) == 2


def test_cells_hold_what_their_scans_show():
    rng = np.random.default_rng(2)
    for _ in range(200):
        scene = draw_scene(rng, "train")
        assert [int(scans()[1][row]) for row in scene.scans] == scene.digits


def test_a_digit_is_drawn_into_its_own_cell():
    rng = np.random.default_rng(3)
    for _ in range(50):
        scene = draw_scene(rng, "train")
        image = np.asarray(render(scene, rng))
        assert image.shape == (SIDE, SIDE, 3)
        half = SIDE // 2
        for place, digit in enumerate(scene.cells):
            top, left = (place // 2) * half, (place % 2) * half
            lit = image[top : top + half, left : left + half].max() > 60
            assert lit == (digit is not None)


def test_presence_is_balanced():
    rng = np.random.default_rng(4)
    said = Counter(draw_for_skill(rng, "eval", "presence")[1].answer for _ in range(1000))
    assert 400 <= said["yes"] <= 600


def test_even_and_odd_and_positions_occur():
    rng = np.random.default_rng(5)
    parity = Counter(draw_for_skill(rng, "train", "parity")[1].answer for _ in range(400))
    assert min(parity["even"], parity["odd"]) > 140
    asked = {draw_for_skill(rng, "train", "position")[1].text for _ in range(400)}
    assert len(asked) == len(PLACES)
