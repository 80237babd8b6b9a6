"""Entity linking: the shared base gives the published figures, and bad input is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tiny
from modalign.applications.entity_linking.data import ambiguous, read_entities, read_mentions
from modalign.applications.entity_linking.judging import judge
from modalign.applications.entity_linking.linking import Linker, Retriever, link

Cli = Callable[..., tuple[int, str, str]]
SHARED = tiny.SHARED / "data" / "entity_linking"
BASE = [
    {"id": "Q1", "name": "Ada Lovelace", "description": "wrote the first program"},
    {"id": "Q2", "name": "Ada Yonath"},
    {"id": "Q3", "name": "Alan Turing"},
]
MENTIONS = [
    {"mention": "Ada", "sentence": "Ada wrote the first program.", "entity": "Q1"},
    {"mention": "Turing", "sentence": "Turing thought.", "entity": "Q3"},
    {"mention": "Bob", "sentence": "Bob slept.", "entity": "Q9"},
    {"mention": "Yonath", "sentence": "The chemist Yonath.", "entity": "Q2"},
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return (
        tiny.write_jsonl(tmp_path / "mentions.jsonl", MENTIONS),
        tiny.write_jsonl(tmp_path / "entities.jsonl", BASE),
    )


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/entity_linking")
def test_the_rule_has_the_published_figures() -> None:
    """Computed apart in the brief: character n-grams of name and sentence, no training."""
    mentions = read_mentions(SHARED / "mentions.jsonl")[::3]  # a third: seconds count
    found = judge(mentions, read_entities(SHARED / "entities.jsonl"))
    rows = {row.name: row.figures for row in found.tables[0].rows}
    both = rows["name + sentence n-grams"]
    assert both["ambiguous"].n > 200
    assert rows["a random entity that fits"]["ambiguous"].value == pytest.approx(0.26, abs=0.03)
    assert rows["name n-grams"]["ambiguous"].value == pytest.approx(0.32, abs=0.04)
    assert rows["name n-grams"]["recall@1"].value == pytest.approx(0.81, abs=0.02)
    assert both["recall@1"].value == pytest.approx(0.83, abs=0.02)
    assert both["among 10"].value > 0.99
    separated = {row.name: row.figures for row in found.tables[1].rows}
    assert separated["name + sentence n-grams"]["AUROC by best score"].value > 0.91


def test_ambiguous_are_the_words_of_several_names(files: tuple[Path, Path]) -> None:
    mentions, entities = read_mentions(files[0]), read_entities(files[1])
    assert ambiguous(mentions, entities) == [[0, 1], [2], [], [1]]


def test_the_sentence_decides_between_equal_names_and_none_is_an_answer(
    cli: Cli, files: tuple[Path, Path], tmp_path: Path
) -> None:
    linker = tmp_path / "linker.json"
    assert cli("app", "link", "train", *files, "-o", linker)[0] == 0
    code, out, err = cli("app", "link", "run", *files, "--linker", linker, "--json")
    assert code == 0, err
    assert [each["entity"] for each in json.loads(out)] == ["Q1", "Q3", None, "Q2"]
    assert cli("app", "link", "run", *files, "--linker", linker, "--json")[1] == out
    linker.write_text(Linker(threshold=9.0).model_dump_json())
    _, out, _ = cli("app", "link", "run", *files, "--linker", linker)
    assert out.count("not in the base") == 4


def test_an_evaluation_has_chance_n_and_a_default(
    cli: Cli, files: tuple[Path, Path], tmp_path: Path, llm_folder: Callable[..., Path]
) -> None:
    arguments = ("app", "link", "eval", *files, "--llm", llm_folder(), "--out", tmp_path / "report")
    code, out, err = cli(*arguments)
    assert code == 0, err
    for words in ("a random", "choice", "no model was found to be better", "AUROC"):
        assert words in " ".join(out.split()), words
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert found["default"] == "name + sentence n-grams"
    assert found["differences"][0]["second"] == found["default"]
    assert cli(*arguments)[0] == 2  # the report is there already


def test_a_model_that_knows_is_the_default(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = [{"id": f"Q{n}", "name": f"John {n}"} for n in range(12)]
    asked = [
        {"mention": "John", "sentence": f"John spoke, the {n}th time.", "entity": f"Q{n % 12}"}
        for n in range(40)
    ]
    for name, rows in (("entities", base), ("mentions", asked)):
        tiny.write_jsonl(tmp_path / f"{name}.jsonl", rows)
    mentions = read_mentions(tmp_path / "mentions.jsonl")
    places = np.array([n % 12 for n in range(40)])
    room = "modalign.applications.entity_linking.judging"
    monkeypatch.setattr(f"{room}.chosen", lambda *_: places)
    entities = read_entities(tmp_path / "entities.jsonl")
    found = judge(mentions, entities, opened=(None, None))
    assert found.default == "a model's choice"
    monkeypatch.setattr(f"{room}.chosen", lambda *_: (places + 1) % 12)
    assert judge(mentions, entities, opened=(None, None)).default == "name + sentence n-grams"


def test_a_base_of_one_entity_links_and_refuses(tmp_path: Path) -> None:
    mentions = read_mentions(tiny.write_jsonl(tmp_path / "m.jsonl", MENTIONS))
    entities = read_entities(tiny.write_jsonl(tmp_path / "e.jsonl", BASE[:1]))
    assert Retriever(entities).scores(mentions)["name n-grams"].shape == (4, 1)
    found = link(mentions, entities, Linker())
    assert (found[0].entity, len(found[0].candidates)) == ("Q1", 1)
    assert found[2].entity is None
    assert judge(mentions, entities).tables[0].rows[0].figures["recall@1"].value == 1


@pytest.mark.parametrize(
    ("mentions", "base", "words"),
    [
        ([{"mention": "Ada", "sentence": "Alan spoke."}], BASE, "m.jsonl:1: the mention 'Ada' is not in its"),
        ([{"mention": "Ada", "sentence": "O Ada", "start": 0, "end": 3}], BASE, "where 'O A' stands"),
        ([{"mention": "", "sentence": "O"}], BASE, "mention is ''"),
        ([{"sentence": "O"}], BASE, "no column 'mention'"),
        (MENTIONS, [BASE[0], BASE[0]], "e.jsonl:2: the id 'Q1' is taken by"),
        (MENTIONS, [{"id": "Q1", "name": " \t"}], "not text with something"),
        (MENTIONS[2:3], BASE, "no mention has an entity that is in the base"),
    ],
)  # fmt: skip
def test_what_cannot_be_linked_is_refused(
    mentions: list, base: list, words: str, cli: Cli, tmp_path: Path
) -> None:
    files = (
        tiny.write_jsonl(tmp_path / "m.jsonl", mentions),
        tiny.write_jsonl(tmp_path / "e.jsonl", base),
    )
    code, _, err = cli("app", "link", "eval", *files)
    assert code == 3, err
    assert words in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "threshold, way: missing"),
        ('{"way": "name n-grams"}', "threshold: missing"),
        ('{"threshold": 0.5, "way": "name n-grams", "ways": 1}', "ways: missing, or unknown"),
        ('{"threshold": NaN, "way": "name n-grams"}', "NaN is not a JSON number"),
        ("[]", "valid dictionary"),
    ],
)
def test_a_linker_that_lacks_what_was_learnt_is_refused(
    text: str, words: str, cli: Cli, files: tuple[Path, Path], tmp_path: Path
) -> None:
    linker = tmp_path / "linker.json"
    linker.write_text(text)
    code, _, err = cli("app", "link", "run", *files, "--linker", linker)
    assert (code, words in err) == (3, True), err


def test_a_linker_of_something_else_is_refused(cli: Cli, files: tuple[Path, Path]) -> None:
    code, _, err = cli("app", "link", "run", *files, "--linker", files[0])
    assert (code, "was not written by 'modalign app link train'" in err) == (3, True)
