"""Captions: CIDEr-D against the paper's formula computed plainly, BLEU and ROUGE-L as published."""

from __future__ import annotations

from collections import Counter
from math import exp, log, sqrt

import numpy as np
import pytest
import sacrebleu
from told import judged, record

from modalign.errors import DataError
from modalign.evaluation.tasks.base import Output
from modalign.evaluation.tasks.caption import Caption, words

REFERENCES = [
    ["a dog runs on the beach", "the dog is running along a beach"],
    ["two cats sleep on a red sofa", "cats sleeping on the sofa", "a sofa with two cats"],
    ["a man rides a bike", "a person on a bike in the street"],
    ["the street is empty at night", "an empty street"],
]
SAID = ["a dog on the beach", "two dogs sleep on a red sofa", "a man rides a bike", ""]


def records() -> list:
    return [record(first, *rest, row=n) for n, (first, *rest) in enumerate(REFERENCES)]


# ---------------------------------------------------------------------------------- CIDEr-D


def _ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    parts = text.split()
    return Counter(tuple(parts[i : i + n]) for i in range(len(parts) - n + 1))


def _cider_d(said: list[str], references: list[list[str]]) -> list[float]:
    """Equations 1 to 3 and the D variant of arXiv 1411.5726, word for word and slowly."""
    images = len(references)

    def weights(text: str, n: int) -> dict[tuple[str, ...], float]:
        found = {}
        for gram, times in _ngrams(text, n).items():
            holders = sum(any(gram in _ngrams(ref, n) for ref in refs) for refs in references)
            found[gram] = times * log(images / max(1, holders))
        return found

    scores = []
    for candidate, refs in zip(said, references, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):
            for ref in refs:
                c, r = weights(candidate, n), weights(ref, n)
                norms = sqrt(sum(x * x for x in c.values())) * sqrt(sum(x * x for x in r.values()))
                if not norms:
                    continue
                dot = sum(min(c[gram], r[gram]) * r[gram] for gram in c if gram in r)
                gap = len(candidate.split()) - len(ref.split())
                total += exp(-(gap**2) / (2 * 6.0**2)) * dot / norms / len(refs)
        scores.append(10 * total / 4)
    return scores


def test_cider_is_the_papers_formula() -> None:
    scores, measures = judged(Caption(), list(zip(records(), SAID, strict=True)))
    expected = _cider_d(SAID, REFERENCES)
    assert [score.value for score in scores] == pytest.approx(expected)
    assert measures["CIDEr"].value == pytest.approx(np.mean(expected))
    assert measures["CIDEr"].unit == "score"
    assert expected[3] == 0 < expected[0] < expected[2]


def test_document_frequencies_come_from_all_references_whatever_the_output() -> None:
    task, asked = Caption(), records()
    task.check(asked)
    one, other = (task.score(asked, [Output(t) for t in said]) for said in (SAID, [*SAID[:3], "x"]))
    assert [score.value for score in one[:3]] == [score.value for score in other[:3]]


def test_words_are_split_without_java() -> None:
    assert words("A dog's toy, on (the) BEACH.") == "a dog's toy on the beach"


# ---------------------------------------------------------------------------------- BLEU, ROUGE-L


def test_bleu_is_sacrebleus_own_example() -> None:
    # From sacrebleu's page: three sentences, the second with one reference only.
    refs = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    said = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    asked = [record(*texts) for texts in refs]
    _, measures = judged(Caption(), list(zip(asked, said, strict=True)))
    assert measures["BLEU"].value == pytest.approx(48.530827009929865)
    whole = sacrebleu.corpus_bleu(said, [list(column) for column in zip(*refs, strict=True)])
    assert measures["BLEU"].value == pytest.approx(whole.score)
    assert measures["BLEU"].low <= measures["BLEU"].value <= measures["BLEU"].high


def test_rouge_l_is_f1_of_the_longest_common_subsequence() -> None:
    # The two sentences of rouge-score's page.
    asked = record("The quick brown fox jumps over the lazy dog")
    scores, _ = judged(Caption(), [(asked, "The quick brown dog jumps on the log."), (asked, "")])
    # common: the quick brown jumps the; 5 of 9 and 5 of 8
    assert scores[0].counts["rouge_l"] == pytest.approx(2 * (5 / 9) * (5 / 8) / (5 / 9 + 5 / 8))
    assert scores[1].counts["rouge_l"] == 0


def test_the_best_reference_counts_for_rouge() -> None:
    asked = [record("x y z", "a b"), record("q")]
    scores, measures = judged(Caption(), [(asked[0], "a b"), (asked[1], "q")])
    assert [score.counts["rouge_l"] for score in scores] == [1, 1]
    assert measures["ROUGE-L"].value == 1


# ---------------------------------------------------------------------------------- what is said of it


def test_it_says_what_it_may_not_be_compared_with() -> None:
    task = Caption()
    judged(task, list(zip(records(), SAID, strict=True)))
    first, second = task.notes()
    assert "not comparable to published COCO scores" in first
    assert "come from 4 records only" in second
    settings = task.settings()
    assert settings["bleu"].startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp")
    assert "not PTB" in settings["cider"]
    assert set(settings) >= {"sacrebleu", "rouge-score", "pycocoevalcap"}


def test_one_record_has_no_document_frequencies() -> None:
    with pytest.raises(DataError, match="needs two or more"):
        Caption().check(records()[:1])
