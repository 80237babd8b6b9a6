"""Items: colours as the rule, a model's vectors beside it, related items from an index."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from modalign.applications.item_embeddings.comparing import DROP, FROZEN, TEXTS, UNTRAINED
from modalign.applications.item_embeddings.data import read_items, read_photos
from modalign.applications.item_embeddings.judging import judge
from modalign.data.records import Media
from modalign.index.colours import best_of, histogram, overlap
from modalign.models.export.folder import save_model
from modalign.models.open import open_model
from modalign.models.prompts import load_prompt

Cli = Callable[..., tuple[int, str, str]]
SHARED = tiny.SHARED / "data" / "grocery"
COLOURS = {"apple": "red", "pear": "green", "plum": "purple", "lemon": "yellow"}


def shop(folder: Path) -> tuple[Path, Path]:
    """Four items in pure colours; two photographs of each, for training and test."""
    items, photos = [], []
    for number, (name, colour) in enumerate(COLOURS.items()):
        for kind in ("item", "train", "test"):
            Image.new("RGB", (tiny.SIDE, tiny.SIDE), colour).save(folder / f"{name}-{kind}.png")
        items.append({"id": name, "text": f"a {name} is {('round', 'long')[number % 2]}",
                      "image": f"{name}-item.png", "kind": ("round", "long")[number % 2]})  # fmt: skip
        photos += [
            {"image": f"{name}-{s}.png", "item": name, "split": s} for s in ("train", "test")
        ]
    return tiny.write_jsonl(folder / "items.jsonl", items), tiny.write_jsonl(
        folder / "photos.jsonl", photos
    )


def test_colours_find_pure_colours(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli(
        "app", "items", "eval", *shop(tmp_path), "--json", "--out", tmp_path / "report"
    )
    assert code == 0, err
    found = json.loads(out)
    rows = {row["name"]: row["figures"] for row in found["tables"][0]["rows"]}
    assert rows["chance"]["top-1"]["value"] == 0.25
    assert rows["colours against photographs"]["top-1"]["value"] == 1
    related = {row["name"]: row["figures"]["same kind"] for row in found["tables"][1]["rows"]}
    assert related["words of the texts"]["value"] == 1
    assert found["default"] == "colours against photographs"
    assert (tmp_path / "report" / "report.html").exists()


def test_a_model_is_a_row_and_not_the_default_unless_better(
    tmp_path: Path, compose_tiny: Callable[..., Any]
) -> None:
    items = read_items(shop(tmp_path)[0])
    photos = read_photos(tmp_path / "photos.jsonl", items)
    found = judge(items, photos, opened=compose_tiny("mlp"))
    names = [row.name for row in found.tables[0].rows]
    assert names[-4:-1] == ["a model, picture", "a model, text", "a model, picture + text"]
    assert names[-1] == "a model, picture + text, another item's picture"
    assert "top-1: " in found.tables[0].notes[-1]
    assert found.default == "colours against photographs"
    assert len(found.differences) == 3


def test_vectors_are_trained_and_evaluated(
    cli: Cli, tmp_path: Path, compose_tiny: Callable[..., Any]
) -> None:
    files, out = shop(tmp_path), tmp_path / "run"
    save_model(*compose_tiny("mlp"), tmp_path / "model")
    arguments = (*files, "--llm", tmp_path / "model", "--budget", "32samples", "-o", out)
    arguments = (*arguments, "--learn-temperature", "--notes", "--fusion")
    code, said, err = cli("app", "items", "train", *arguments)
    assert code == 0, err
    assert "of 8 photographs and items" in said
    prompt = load_prompt(out / "model")
    assert prompt is not None
    assert prompt.notes
    assert prompt.fusion is not None
    code, said, err = cli("app", "items", "eval", *files, "--llm", out / "model", "--json")
    assert code == 0, err
    assert len(json.loads(said)["differences"]) == 3
    rows = [json.loads(line) for line in files[1].read_text().splitlines()]
    tiny.write_jsonl(files[1], [row | {"split": "test"} for row in rows])
    code, _, err = cli("app", "items", "train", *arguments, "--overwrite")
    assert (code, "photograph for training" in err) == (3, True)


def test_every_form_is_trained_and_scored(
    cli: Cli, tmp_path: Path, compose_tiny: Callable[..., Any]
) -> None:
    files, out = shop(tmp_path), tmp_path / "forms"
    save_model(*compose_tiny("mlp"), tmp_path / "model")
    arguments = ("app", "items", "compare", *files, "--llm", tmp_path / "model", "-o", out)
    code, _, err = cli(*arguments)
    assert (code, "has no picture or no text" in err) == (3, True)
    rows = [json.loads(line) | {"text": "this one"} for line in files[1].read_text().splitlines()]
    tiny.write_jsonl(files[1], rows)
    arguments = (*arguments, "--budget", "8samples", "--seeds", "2", "--json")
    code, said, err = cli(*arguments)
    assert code == 0, err
    table = json.loads(said)["tables"][0]
    assert [row["name"] for row in table["rows"]] == [
        "chance", TEXTS, FROZEN, UNTRAINED, "text only", "picture only", "base", "+ mICL", "+ late fusion", "both"
    ]  # fmt: skip
    figures = {row["name"]: row["figures"] for row in table["rows"]}
    assert figures["chance"]["top-1"]["value"] == 0.25
    assert figures[TEXTS]["top-1"]["value"] == 0.25  # equal texts share their place
    assert figures["both"]["top-1"]["trainings"] == 2
    assert {name for name, own in figures.items() if DROP in own} == {
        "picture only", "base", "+ mICL", "+ late fusion", "both"
    }  # fmt: skip
    assert sum("against" in note for note in table["notes"]) == 5
    code, again, err = cli(*arguments, "--resume")
    assert code == 0, err
    assert json.loads(again)["tables"] == json.loads(said)["tables"]


def test_a_text_model_is_refused(tmp_path: Path, llm_folder: Callable[..., Path], cli: Cli) -> None:
    code, _, err = cli("app", "items", "eval", *shop(tmp_path), "--llm", llm_folder())
    assert (code, "takes text only" in err) == (2, True)
    assert open_model(llm_folder())


def test_related_items_come_from_the_index(
    cli: Cli, tmp_path: Path, llm_folder: Callable[..., Path]
) -> None:
    rows = [{"id": n, "text": t} for n, t in (("a", "one"), ("b", "is it odd?"), ("c", "one"))]
    items = tiny.write_jsonl(tmp_path / "items.jsonl", rows)
    assert cli("embed", llm_folder(), items, "-o", tmp_path / "v")[0] == 0
    code, out, err = cli("app", "items", "run", tmp_path / "v", "a", "-k", "1", "--json")
    assert code == 0, err
    assert json.loads(out) == [{"id": "c", "score": pytest.approx(1, abs=1e-5)}]
    code, _, err = cli("app", "items", "run", tmp_path / "v", "x")
    assert (code, "no item 'x'" in err) == (3, True)


def test_histograms_are_shares_of_pixels(tmp_path: Path) -> None:
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:4] = (255, 0, 0)
    Image.fromarray(halves).save(tmp_path / "a.png")
    own = histogram(Media("image", path=str(tmp_path / "a.png")))
    assert own.sum() == pytest.approx(1)
    assert sorted(own)[-2:] == pytest.approx([0.5, 0.5], abs=0.07)  # made larger, so blurred
    assert overlap(own[None], own[None])[0, 0] == pytest.approx(1)
    best = best_of(np.array([[1.0, 3.0, 2.0], [6.0, 4.0, 5.0]]), [2, 0, 2], 3)
    assert best.tolist() == [[3, -1, 2], [4, -1, 6]]


@pytest.mark.parametrize(
    ("items", "photos", "words"),
    [
        ([{"id": "a"}], [], "neither text nor a picture"),
        ([{"id": "a", "text": "b"}], [], "one item"),
        ([{"id": "a", "text": "b"}, {"id": "a", "text": "c"}], [], "the id 'a' is taken by"),
        ([{"id": "a", "image": "none.png"}], [], "the picture none.png"),
        ([{"id": n, "text": n} for n in "ab"], [{"image": "p.png", "item": "x"}], "no item has the id 'x'"),
        ([{"id": n, "text": n} for n in "ab"], [{"image": "p.png", "item": "a", "split": "train"}], "for test"),
    ],
)  # fmt: skip
def test_unusable_items_are_refused(
    items: list, photos: list, words: str, cli: Cli, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    files = (
        tiny.write_jsonl(tmp_path / "i.jsonl", items),
        tiny.write_jsonl(tmp_path / "p.jsonl", photos),
    )
    code, _, err = cli("app", "items", "eval", *files)
    assert code == 3, err
    assert words in err


def test_identical_items_share_their_place(tmp_path: Path) -> None:
    files = shop(tmp_path)
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    twin = {**rows[0], "id": "twin"}
    items = read_items(tiny.write_jsonl(files[0], [*rows, twin]))
    photos = [each for each in read_photos(files[1], items) if each.test]
    top = judge(items, photos).tables[0].rows[1].figures["top-1"].value
    assert top == pytest.approx((3 + 0.5) / 4)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/grocery")
def test_the_rule_has_the_published_figures() -> None:
    items = read_items(SHARED / "items.json")
    found = judge(items, read_photos(SHARED / "photos.json", items))
    rows = {row.name: row.figures for row in found.tables[0].rows}
    assert rows["colours against photographs"]["top-1"].value == pytest.approx(0.33, abs=0.03)
    assert rows["colours against photographs"]["top-5"].value == pytest.approx(0.73, abs=0.03)
    assert rows["colours against product pictures"]["top-1"].value == pytest.approx(0.06, abs=0.03)
    assert found.tables[1].rows[1].figures["same kind"].value == pytest.approx(0.97, abs=0.02)
