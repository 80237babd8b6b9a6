"""Captions against references: BLEU (sacrebleu), ROUGE-L (rouge-score), CIDEr-D (pycocoevalcap).

CIDEr-D is 10 times a mean of tf-idf cosines over n-grams of one to four words, clipped, with a
Gaussian penalty on the difference in length (Vedantam et al. 2015, arXiv 1411.5726, section 8). Its
document frequencies come from the references of all given records. Published scores count
words after a Java tokeniser (PTB); here a regular expression splits them.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from modalign.data.records import Record
from modalign.errors import DataError
from modalign.evaluation.tasks.base import Output, Score, Task
from modalign.numbers.bootstrap import Groups, estimate_of_sums
from modalign.numbers.estimate import Estimate

NOT_PTB = (
    "BLEU, ROUGE-L and CIDEr are not comparable to published COCO scores: those are taken after the PTB "
    "tokeniser, CIDEr's with the document frequencies of the whole reference corpus; here the "
    "frequencies come from {n} records. CIDEr is on the formula's scale of 0 to 10; papers print it times 100."
)
FEW = 500  # records below which CIDEr's document frequencies are unreliable
_WORD = re.compile(r"\w+(?:'\w+)?")


def words(text: str) -> str:
    """Return lower-case words separated by single spaces, without punctuation, as CIDEr counts them."""
    return " ".join(_WORD.findall(text.lower()))


class Caption(Task):
    """BLEU, ROUGE-L and CIDEr of generated captions."""

    name = "caption"
    headline = "CIDEr"
    per_question = False
    needs = ("sacrebleu", "rouge_score.rouge_scorer", "pycocoevalcap.cider.cider")

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.records = 0

    def check(self, records: Sequence[Record]) -> None:
        """Require two records, since with one every document frequency is the same."""
        if len(records) < 2:
            raise DataError(
                f"task {self.name} has {len(records)} record: CIDEr weighs words by how many records "
                "they occur in and needs two or more"
            )
        self.records = len(records)

    def score(self, records: Sequence[Record], outputs: Sequence[Output]) -> list[Score]:
        """CIDEr per record; ROUGE-L and BLEU's counts beside it."""
        given = [list(dict.fromkeys((r.answer, *r.answers))) for r in records]
        said = [output.text for output in outputs]
        cider = _cider(said, given)
        return [
            Score(
                value,
                words(text),
                {"rouge_l": _rouge(text, references), "bleu": _bleu_counts(text, references)},
            )
            for value, text, references in zip(cider, said, given, strict=True)
        ]

    def measures(self, scores: Sequence[Score], groups: Groups) -> dict[str, Estimate]:
        """Return corpus BLEU (0 to 100), mean ROUGE-L F1, mean CIDEr (0 to 10)."""
        rouge = [Score(score.counts["rouge_l"], "") for score in scores]
        bleu = estimate_of_sums(
            np.array([score.counts["bleu"] for score in scores], dtype=float),
            _bleu,
            groups=groups,
            unit="points",
            seed=self.seed,
        )
        assert bleu is not None
        return {
            "CIDEr": self.mean(scores, groups, "score"),
            "ROUGE-L": self.mean(rouge, groups),
            "BLEU": bleu,
        }

    def constants(self, records: Sequence[Record]) -> dict[str, list[Output]]:
        """Return none: captions have no most frequent one."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Libraries, and sacrebleu's signature."""
        from sacrebleu.metrics.bleu import BLEU

        metric = BLEU()
        metric.corpus_score([""], [[""]])  # the signature needs a number of references
        signature = str(metric.get_signature()).replace("nrefs:1", "nrefs:var")
        libraries = {
            name: importlib.metadata.version(name)
            for name in ("sacrebleu", "rouge-score", "pycocoevalcap")
        }
        return {"bleu": signature, "cider": "CIDEr-D, own tokenisation, not PTB", **libraries}

    def notes(self) -> list[str]:
        """Return which scores these cannot be compared with."""
        notes = [NOT_PTB.format(n=self.records)]
        if self.records < FEW:
            notes.append(
                f"CIDEr's document frequencies come from {self.records} records only, fewer than {FEW}: it "
                "ranks outputs on these records and means nothing beside other data."
            )
        return notes


def _cider(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    from pycocoevalcap.cider.cider import Cider

    given = {place: [words(text) for text in texts] for place, texts in enumerate(references)}
    said = {place: [words(text)] for place, text in enumerate(outputs)}
    _, values = Cider().compute_score(given, said)
    return [float(value) for value in values]


def _rouge(output: str, references: Sequence[str]) -> float:
    """Return the largest F1, over the references, of the longest common word subsequence."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return float(scorer.score_multi(list(references), output)["rougeL"].fmeasure)


def _bleu_counts(output: str, references: Sequence[str]) -> list[int]:
    """Return n-gram matches and totals (n = 1 to 4) and both lengths, whose sums give BLEU."""
    from sacrebleu.metrics.bleu import BLEU

    found = BLEU().corpus_score([output], [[reference] for reference in references])
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


def _bleu(sums: np.ndarray) -> np.ndarray:
    """(R, 10) sums -> (R,) BLEU."""
    from sacrebleu.metrics.bleu import BLEU

    return np.array(
        [
            BLEU.compute_bleu(
                correct=[int(x) for x in row[:4]],
                total=[int(x) for x in row[4:8]],
                sys_len=int(row[8]),
                ref_len=int(row[9]),
                smooth_method="exp",
            ).score
            for row in sums
        ]
    )
