"""Fingerprints: sources that differ are told, length is shown apart, what cannot be told is not told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

import tiny
from modalign.applications.fingerprints.data import read_texts
from modalign.applications.fingerprints.judging import judge
from modalign.numbers.classes import macro_f1

Cli = Callable[..., tuple[int, str, str]]
SHARED = tiny.SHARED / "data" / "machine_text"
TEXTS = {
    "human": "well honestly i guess the dog ran and so we went home late again",
    "first": "furthermore the comprehensive analysis demonstrates significant improvements",
    "second": "lo the moon weeps upon thy silver waves whilst sorrow sings",
}
WORDS = {name: text.split() for name, text in TEXTS.items()}


def written(source: str, words: int = 130, seed: int = 0) -> str:
    rng = np.random.default_rng([seed, sum(map(ord, source))])
    return " ".join(rng.choice(WORDS[source], words))


def rows(
    sources: dict[str, str], domain: str = "news", documents: int = 12
) -> list[dict[str, str]]:
    """Texts of each source, in the style of another."""
    return [
        {"text": written(style, seed=n * 7 + place), "source": source}
        | {"document": f"{domain}{n}", "domain": domain}
        for n in range(documents)
        for place, (source, style) in enumerate(sources.items())
    ]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    same = {name: name for name in WORDS}
    return tiny.write_jsonl(tmp_path / "texts.jsonl", [*rows(same), *rows(same, "stories")])


def test_styles_are_told_in_another_domain_too_and_length_says_nothing(texts: Path) -> None:
    found = judge(read_texts([texts]))
    figures = {row.name: row.figures["n = 1"].value for row in found.tables[0].rows}
    assert figures["chance"] == pytest.approx(1 / 3)
    assert figures["n-grams"] == figures["n-grams, another domain"] == 1
    assert figures["length only"] < 0.7
    assert "lower case" in " ".join(figures)
    titles = [table.title for table in found.tables]
    unknown = next(table for table in found.tables if table.title.startswith("None of these"))
    enrolments = [row.name for row in unknown.rows if row.name.startswith("enrolled")]
    assert enrolments == ["enrolled from 5 texts"]  # of twelve documents six are there to enrol
    assert any(title.startswith("Human or machine") for title in titles)
    alarms = next(t for t in found.tables if t.title.startswith("Human")).rows[0].figures
    assert alarms["human taken for machine"].interval == "wilson"


def test_siblings_are_not_identifiable(cli: Cli, tmp_path: Path) -> None:
    same = rows({"a": "human", "b": "human", "c": "human"}, documents=20)
    file, out = tiny.write_jsonl(tmp_path / "same.jsonl", same), tmp_path / "prints.json"
    code, said, err = cli("app", "fingerprint", "train", file, "-o", out)
    assert code == 0, err
    assert "not identifiable" in said
    (tmp_path / "x.txt").write_text(written("human"))
    code, said, _ = cli("app", "fingerprint", "run", out, tmp_path / "x.txt")
    assert (code, said.startswith("not identifiable")) == (0, True)
    assert "not identifiable" in judge(read_texts([file])).reason


def test_a_source_is_named_and_short_texts_are_refused(
    cli: Cli, texts: Path, tmp_path: Path
) -> None:
    out, long, short = tmp_path / "prints.json", tmp_path / "long.txt", tmp_path / "short.txt"
    assert cli("app", "fingerprint", "train", texts, "-o", out)[0] == 0
    long.write_text(written("second", seed=99))
    short.write_text("a text of ten words is not enough to judge")
    code, said, err = cli("app", "fingerprint", "run", out, long, short, "--json")
    assert code == 0, err
    found = json.loads(said)
    assert (found["source"], found["texts"], found["refused"]) == ("second", 1, 1)
    code, _, err = cli("app", "fingerprint", "run", out, short)
    assert (code, "below 100 a text is not judged" in err) == (3, True)
    code, _, err = cli("app", "fingerprint", "run", long, long)
    assert (code, "was not written by" in err) == (3, True)
    whole = json.loads(out.read_text())
    for broken, words in (
        ({"classes": whole["classes"]}, "identifiable, most, threshold: missing"),
        ({**whole, "classes": {**whole["classes"], "bias": [0.0]}}, "do not fit the weights"),
    ):
        out.write_text(json.dumps(broken))
        code, _, err = cli("app", "fingerprint", "run", out, long)
        assert (code, words in err) == (3, True), err


def test_pairs_are_read_and_a_human_text_counts_once(tmp_path: Path) -> None:
    pair = {"document": "d", "human": "h h", "machine": "m m"}
    file = tiny.write_jsonl(tmp_path / "p.jsonl", [{**pair, "model": "a"}, {**pair, "model": "b"}])
    assert [(each.source, each.text) for each in read_texts([file])] == [
        ("human", "h h"), ("a", "m m"), ("b", "m m")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([{"text": "a"}], "no column 'source'"),
        ([{"text": "a b", "source": "x"}] * 2, "two sources or more"),
        ([{"machine": "a b", "source": "x"}], "no column 'human'"),
        (rows({"a": "human"}, documents=3), "two sources or more"),
    ],
)
def test_texts_that_cannot_be_judged_are_refused(
    given: list, words: str, cli: Cli, tmp_path: Path
) -> None:
    file = tiny.write_jsonl(tmp_path / "texts.jsonl", given)
    code, _, err = cli("app", "fingerprint", "eval", file)
    assert code == 3, err
    assert words in err


def test_macro_f1_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    guessed, right = rng.integers(0, 4, 80), rng.integers(0, 4, 80)
    found = macro_f1(guessed, right, 4)
    assert found.value == pytest.approx(f1_score(right, guessed, average="macro"))
    assert found.low < found.value < found.high


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/machine_text")
def test_length_leaks_on_whole_texts_and_not_on_cut_ones() -> None:
    """As the brief computed it apart: news, three models and people."""
    texts = [
        each for each in read_texts([SHARED / "gpt_xsum.jsonl"]) if int(each.document[-2:]) % 2
    ]
    figures = {row.name: row.figures["n = 1"].value for row in judge(texts).tables[0].rows}
    assert figures["length only, whole texts"] > 0.5
    assert figures["length only"] < 0.25
    assert 0.35 < figures["n-grams"] < 0.6
