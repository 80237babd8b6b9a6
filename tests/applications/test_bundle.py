"""Bundles: split by session, what leaks is a row, and bad input is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from modalign.applications.bundles import data, judging
from modalign.applications.bundles.completing import record_of
from modalign.applications.bundles.data import (
    Catalogue,
    Question,
    questions,
    read_catalogue,
    split,
)
from modalign.applications.bundles.judging import judge
from modalign.applications.rows import Relations
from modalign.applications.tuned import lettered, offered
from modalign.chat_templates import SEPARATOR
from modalign.evaluation.choosing import Chosen
from modalign.models.prompts import load_prompt
from modalign.models.saved import open_composed

Cli = Callable[..., tuple[int, str, str]]
SHARED = tiny.SHARED / "data" / "bundles"
KINDS = ("tea ", "tie ", "pen ", "cup ")


def shop(folder: Path, sessions: int = 20) -> Path:
    """Bundles of two or three items of one kind; each session has two bundles that share an item."""
    folder.mkdir(exist_ok=True)
    titles = [f"{n},{KINDS[n % 4]}{n}{' &amp; more' * (n == 0)}" for n in range(48)]
    pairs, held = [], []
    for session in range(sessions):
        own = [(session * 4 + 4 * place) % 48 + session % 4 for place in range(3)]
        for half, items in enumerate((own, own[:2])):
            pairs += [f"{2 * session + half},{item}" for item in items]
            held.append(f"{session},{2 * session + half}")
    for name, head, lines in (
        ("item_titles", "item ID,titles", titles),
        ("bundle_item", "bundle ID,item ID", pairs),
        ("session_bundle", "session ID,bundle ID", held),
    ):
        (folder / f"{name}.csv").write_text("\n".join([head, *lines]) + "\n")
    return folder


def test_no_session_is_on_both_sides_and_nothing_shown_is_offered(tmp_path: Path) -> None:
    catalogue = read_catalogue(shop(tmp_path))
    assert catalogue.titles[0] == "tea 0 & more"
    train, test = split(catalogue.bundles, lambda bundle: bundle.session, 3)
    assert not {b.session for b in train} & {b.session for b in test}
    assert train
    assert test
    for question, bundle in zip(questions(test, 48, 0), test, strict=True):
        assert set(question.shown) | {question.candidates[0]} == set(bundle.items)
        assert not set(question.candidates[1:]) & set(bundle.items)
        assert len(set(question.candidates)) == 10


def test_titles_win_and_leakage_stands_apart(tmp_path: Path) -> None:
    found = judge(read_catalogue(shop(tmp_path, 40)))
    rows = {row.name: row for row in found.tables[0].rows}
    assert rows["chance"].figures["random others"].value == pytest.approx(0.1)
    assert rows["title TF-IDF"].figures["random others"].value > 0.2
    assert rows["co-occurrence, split by bundle: leaks"].kind == "reference"
    assert found.default == "title TF-IDF"


def test_the_answer_follows_the_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = read_catalogue(shop(tmp_path, 40))

    def knows(_: object, __: object, records: list, **___: object) -> list[Chosen]:
        return [Chosen(record.answer, record.answer, 1.0, 4, ()) for record in records]

    monkeypatch.setattr(judging, "choose_all", knows)
    found = judge(catalogue, opened=(None, None))
    assert found.tables[1].rows[1].figures["look-alikes"].value == 1
    assert found.default == "a model's choice, by letter"
    assert "100% of the orders" in found.tables[1].notes[0]


def test_letters_are_answers_wherever_the_option_stands() -> None:
    records = [tiny.record("which?", "red", row=n) for n in range(20)]
    shown = lettered([replace(each, options=("red", "green", "blue")) for each in records])
    for each in shown:
        letter = each.answer
        assert f"\n{letter}. red\n" in each.messages[0].text
    assert {each.answer for each in shown} == {"A", "B", "C"}


def test_training_run_and_evaluation(
    cli: Cli, tmp_path: Path, llm_folder: Callable[..., Path]
) -> None:
    folder, out = shop(tmp_path / "shop"), tmp_path / "run"
    code, said, err = cli(
        "app", "bundle", "train", folder, "--llm", llm_folder(), "--budget", "32samples", "-o", out
    )
    assert code == 0, err
    assert "trained on" in said
    code, said, err = cli(
        "app", "bundle", "eval", folder, "--llm", out / "model", "--limit", "3", "--json"
    )
    assert code == 0, err
    found = json.loads(said)
    assert [row["name"] for row in found["tables"][1]["rows"]] == [
        "title TF-IDF",
        "a model's choice, by letter",
        "a model's choice, by words",
    ]
    code, said, err = cli(
        "app", "bundle", "run", folder, "--item", "0", "--item", "4", "-k", "2", "--json"
    )
    assert code == 0, err
    assert all("tea " in each["title"] for each in json.loads(said))


def test_the_second_stage_reads_relation_vectors(
    cli: Cli, tmp_path: Path, llm_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of the sessions that are not judged, a model that takes them, options as the objective."""
    monkeypatch.setattr(data, "NEGATIVES", 3)  # the tiny model reads 256 positions
    folder, related, out = shop(tmp_path / "shop"), tmp_path / "related", tmp_path / "run"
    code, said, err = cli("app", "bundle", "relations", folder, "-o", related)
    assert code == 0, err
    vectors = np.load(related / "relations.npy")
    assert vectors.shape == (48, 64)
    (line, *_) = (related / "rows.jsonl").read_text().splitlines()
    assert json.loads(line)["vectors"].startswith("relations.npy#")
    model = tmp_path / "aligned"
    aligning = ("--encoder", "vectors=none", "--llm", llm_folder(), "--method", "linear")
    rows = ("--train", related / "rows.jsonl", "--budget", "32samples", "--factor", "1")
    code, _, err = cli("train", *aligning, *rows, "--out", model)
    assert code == 0, err
    given, short = (
        ("--relations", related / "relations.npy"),
        ("--options", "--separator", "--budget", "40samples"),
    )
    code, _, err = cli(
        "app", "bundle", "train", folder, "--llm", model / "model", *given, *short, "-o", out
    )
    assert code == 0, err
    prompt = load_prompt(out / "model")
    assert (prompt is not None and prompt.separator and not prompt.notes) is True
    rows_before, rows_after = (
        open_composed(each / "model").model.get_input_embeddings().weight for each in (model, out)
    )
    assert len(rows_after) == len(rows_before) + 1
    assert not torch.allclose(rows_after[-1], rows_before.mean(0), atol=1e-5)  # it has learnt
    judged = ("--llm", out / "model", *given, "--limit", "2", "--json")
    code, said, err = cli("app", "bundle", "eval", folder, *judged)
    assert code == 0, said
    names = [row["name"] for row in json.loads(said)["tables"][1]["rows"]]
    assert names[1:] == [
        "a model's choice, by letter", "a model's choice, by words",
        "the same, relations shuffled, by letter", "the same, relations shuffled, by words",
    ]  # fmt: skip
    code, _, err = cli(
        "app", "bundle", "train", folder, "--llm", model / "model", "--separator", "-o", out
    )
    assert (code, "give them with --relations" in err) == (2, True)
    np.save(related / "relations.npy", vectors[:3])
    code, _, err = cli("app", "bundle", "eval", folder, *given)
    assert (code, "3 rows, but there are 48 items" in err) == (3, True)


def test_a_separator_stands_between_title_and_vector_and_no_title_spells_it(tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", np.zeros((4, 2), np.float32))
    titles = ["cup", f"tea {SEPARATOR}", "pen", "tie"]
    catalogue = Catalogue(["0", "1", "2", "3"], titles, [])
    relations = Relations(tmp_path / "r.npy", 4)
    found = record_of(Question((0,), (1, 2), ""), catalogue, 0, relations, separated=True)
    assert found is not None
    parts = found.messages[0].parts
    assert [p for p in parts if isinstance(p, str)][1:] == [
        f"\ncup: {SEPARATOR}", f"\npen: {SEPARATOR}", f"\ntea  : {SEPARATOR}"
    ]  # fmt: skip
    assert found.answer == "tea  "


def test_options_are_records_of_one_group() -> None:
    asked = replace(tiny.record("which?", "red", row=1), options=("red", "green", "blue"))
    found = offered([asked])
    assert [each.answer for each in found] == ["red", "green", "blue"]
    assert [each.skill for each in found] == ["right", "wrong", "wrong"]
    assert len({each.group for each in found}) == 1
    assert len({each.id for each in found}) == 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "bundle_item",
            "bundle ID,item ID\n0,99\n",
            "bundle_item.csv:2: the item '99' has no title",
        ),
        ("bundle_item", "bundle ID,item ID\n0,1\n1,2\n", "every bundle has one item"),
        ("item_titles", "item ID,titles\n1,\n", "titles is"),
        ("item_titles", "item ID,titles\n1,a\n1,b\n", "the item ID '1' is taken by"),
        ("session_bundle", "session,bundle ID\n1,2\n", "no column 'session ID'"),
    ],
)
def test_unusable_shops_are_refused(
    name: str, content: str, words: str, cli: Cli, tmp_path: Path
) -> None:
    (shop(tmp_path) / f"{name}.csv").write_text(content)
    code, _, err = cli("app", "bundle", "eval", tmp_path)
    assert code == 3, err
    assert words in err


def test_unknown_items_and_no_item_are_refused(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("app", "bundle", "run", shop(tmp_path), "--item", "x")
    assert (code, "no item has the id 'x'" in err) == (3, True)
    assert cli("app", "bundle", "run", tmp_path)[0] == 2
    assert cli("app", "bundle", "eval", tmp_path / "none")[0] == 3


@pytest.mark.skipif(
    not SHARED.exists(), reason="needs ../shared/data/bundles (internal tests only)"
)
def test_the_rule_has_the_briefs_figures() -> None:
    found = judge(read_catalogue(SHARED / "food"))
    rows = {row.name: row.figures for row in found.tables[0].rows}
    assert rows["title TF-IDF"]["random others"].value == pytest.approx(0.58, abs=0.05)
    assert rows["title TF-IDF"]["look-alikes"].value == pytest.approx(0.25, abs=0.05)
    assert rows["co-occurrence"]["random others"].value == pytest.approx(0.13, abs=0.03)
    assert rows["co-occurrence, split by bundle: leaks"]["random others"].value > 0.35
