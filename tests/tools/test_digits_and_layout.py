"""The starter's tools: the digit reader on scans it was not fitted on, and where things are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalign.data.records import Media
from modalign.starter import scenes
from modalign.starter.scenes import Scene, draw_scene, render, scans, split_scans, to_png
from modalign.tools.base import Tool
from modalign.tools.build import build_chain, build_tool
from modalign.tools.digits import DigitReader, ReaderWeights, crop, find_digits, fitted
from modalign.tools.guard import call_safely
from modalign.tools.layout import LayoutTool, PlacedThing, counts, relations
from modalign.tools.registry import chain_spec
from modalign.tools.spec import DigitReaderSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fitted classifier is."""
    place = tmp_path_factory.mktemp("digits")
    fitted(place)
    return place


@pytest.fixture(scope="module")
def reader(folder: Path) -> DigitReader:
    return DigitReader(folder, name="digits", description="reads digits", modalities=("image",))


def scene_and_medium(seed: int, split: Any = "eval") -> tuple[Scene, Media]:
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, split)
    return scene, Media("image", data=to_png(render(scene, rng)))


def test_it_reads_scans_that_it_was_not_fitted_on(reader: DigitReader) -> None:
    rng = np.random.default_rng(0)
    right, rows = 0, split_scans("eval")
    for number, row in enumerate(rows):
        cells: list[int | None] = [None] * 4
        cells[number % 4] = int(scans()[1][row])
        a, b, c, d = cells
        grey = np.asarray(render(Scene((a, b, c, d), (int(row),)), rng).convert("L"), np.float32)
        (box,) = find_digits(grey)
        right += int(reader.weights.chances(crop(grey, box)[None]).argmax()) == cells[number % 4]
    assert len(rows) == 504
    assert right / len(rows) >= 0.96  # 490 of 504 where this was written


def test_it_is_fitted_on_training_scans_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from modalign.tools import digits

    asked = []
    monkeypatch.setattr(
        digits, "split_scans", lambda split: asked.append(split) or split_scans(split)
    )
    crops, labels = digits.training_crops()
    assert asked == ["train"]
    assert len(crops) == len(labels) == len(split_scans("train"))
    assert np.array_equal(labels, scans()[1][split_scans("train")])


@given(st.integers(min_value=0, max_value=10_000))
def test_every_digit_of_a_scene_is_found_in_its_cell(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, "eval")
    grey = np.asarray(render(scene, rng).convert("L"), np.float32)
    found = {int(2 * (y0 // scenes.CELL) + x0 // scenes.CELL) for x0, y0, _, _ in find_digits(grey)}
    assert found == {place for place, digit in enumerate(scene.cells) if digit is not None}


def test_the_fitted_numbers_are_kept_and_a_damaged_file_is_made_anew(
    folder: Path, tmp_path: Path, reader: DigitReader
) -> None:
    (file,) = folder.iterdir()
    assert file.suffix == ".safetensors"
    (tmp_path / file.name).write_bytes(file.read_bytes()[:100])
    again = fitted(tmp_path)
    assert again.digest() == reader.weights.digest()
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    assert reader.parameters == sum(one.size for one in vars(reader.weights).values()) == 39_434


def test_chances_are_those_of_scikit_learn() -> None:
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    points, labels = rng.random((60, 9)), rng.integers(0, 10, 60)
    kernel = Nystroem(gamma=0.05, n_components=20, random_state=0)
    model = LogisticRegression(max_iter=500).fit(kernel.fit_transform(points), labels)
    weights = ReaderWeights(
        kernel.components_.astype(np.float32),
        (kernel.normalization_.T @ model.coef_.T).astype(np.float32),
        model.intercept_.astype(np.float32),
    )
    expected = model.predict_proba(kernel.transform(points))
    assert np.allclose(weights.chances(points.astype(np.float32)), expected, atol=1e-4)


def test_the_starters_chain_says_what_the_language_model_knows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODALIGN_CACHE", str(folder))
    chain = build_chain(chain_spec("starter_tools"), lambda text: len(text.split()))
    agreed = 0
    for seed in range(40):
        scene, medium = scene_and_medium(seed)
        text = chain.text(medium)
        agreed += text == scene.describe()
        places = [part.rpartition(" ")[0] for part in text.split(", ")]
        assert places == [part.rpartition(" ")[0] for part in scene.describe().split(", ")]
    assert agreed >= 34  # 93 % of evaluation scenes are read without a mistake
    assert chain.cost().parameters == 39_434


def test_a_scene_without_digits_has_no_lines(reader: DigitReader) -> None:
    from modalign.data.images import blank_image

    dark = Media("image", data=to_png(render(Scene((None,) * 4, ()), np.random.default_rng(0))))
    assert call_safely(reader, dark).result == []
    assert call_safely(reader, blank_image(30, 70)).problem is None


def test_it_is_built_by_its_kind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALIGN_CACHE", str(folder))
    assert build_tool(DigitReaderSpec()).name == "digits"


# --- layout ---------------------------------------------------------------------------------


class Boxes(Tool):
    """Finds what it is told, in a picture of 90 x 60."""

    def __init__(self, *found: dict[str, Any]) -> None:
        super().__init__("boxes", "finds boxes", modalities=("image",))
        self.found = list(found)

    def run(self, medium: Media, **arguments: Any) -> Any:
        return self.found

    def identity(self, hash_file: Any) -> Any:
        return self.found


def at(name: str, x: float, y: float, score: float = 1.0) -> dict[str, Any]:
    return {"label": name, "score": score, "box": [x - 2, y - 2, x + 2, y + 2]}


def said(grid: int, say: tuple[str, ...], *found: dict[str, Any]) -> list[str]:
    from PIL import Image

    tool = LayoutTool(
        Boxes(*found), grid, say, name="layout", description="", modalities=("image",)
    )
    medium = Media("image", data=to_png(Image.new("RGB", (90, 60))))
    return [line["text"] for line in call_safely(tool, medium).result]  # type: ignore[union-attr, index, call-overload]


def test_places_by_thirds_in_reading_order() -> None:
    nine = [
        at(f"{row}{column}", 15 + 30 * column, 10 + 20 * row)
        for row in (2, 0, 1)
        for column in (1, 2, 0)
    ]
    assert said(3, ("places",), *nine) == [
        "top left 00", "top 01", "top right 02",
        "left 10", "centre 11", "right 12",
        "bottom left 20", "bottom 21", "bottom right 22",
    ]  # fmt: skip


def test_places_by_halves() -> None:
    four = [at("d", 60, 50), at("a", 10, 10), at("c", 20, 31), at("b", 46, 29)]
    assert said(2, ("places",), *four) == [
        "top left a",
        "top right b",
        "bottom left c",
        "bottom right d",
    ]


def test_relations_are_along_the_axis_that_parts_more() -> None:
    two = [at("cat", 50, 30), at("dog", 20, 25)]
    assert said(3, ("relations",), *two) == ["dog left of cat"]
    assert said(3, ("relations",), at("cat", 50, 50), at("dog", 45, 5)) == ["dog above cat"]


@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 60)), min_size=2, max_size=6, unique=True)
)
def test_every_relation_holds(points: list[tuple[int, int]]) -> None:
    things = [PlacedThing(str(number), 1.0, x, y) for number, (x, y) in enumerate(points)]
    found = relations(things)
    assert len(found) == len(points) * (len(points) - 1) // 2
    for line in found:
        first, word, second = line["text"].replace("left of", "left").split()
        axis = 0 if word == "left" else 1
        assert points[int(first)][axis] < points[int(second)][axis]


def test_counts() -> None:
    things = [PlacedThing(name, 1.0, 0, 0) for name in ("dog", "cat", "dog")]
    assert counts(things)[0]["text"] == "3 things: dog 2, cat 1"
    assert counts(things[:1])[0]["text"] == "1 thing: dog 1"
    assert counts([])[0]["text"] == "nothing"
