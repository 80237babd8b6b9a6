"""POPE: yes/no questions about objects that may be absent (Li et al. 2023, arXiv 2305.10355).

``yes`` is the positive class. Only the first word of an output counts. An output that begins with neither word is
invalid: it is wrong and stays in every denominator. The public script counts everything without a "no" or "not" as
a yes, so rambling outputs score differently there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from modalign.data.records import Record
from modalign.evaluation.guessing import BlindGuess
from modalign.evaluation.tasks.base import (
    MOST_FREQUENT,
    Groups,
    Output,
    Score,
    Task,
    most_frequent_outputs,
)
from modalign.numbers.estimate import Estimate
from modalign.numbers.shares import share

YES, NO = "yes", "no"
ALWAYS_YES = "always yes"
_FIRST = re.compile(r"\W*(\w+)")


def first_word(text: str) -> str:
    """Return ``yes``, ``no``, or an empty string if an answer begins with neither."""
    found = _FIRST.match(text)
    word = found.group(1).casefold() if found else ""
    return word if word in (YES, NO) else ""


class Pope(Task):
    """Accuracy, precision, recall, F1 and share of yes; a split is its records' skill."""

    name = "pope"
    advice = 'give questions answered by "yes" or "no", the split (random, popular, adversarial) as skill'

    def problem(self, record: Record) -> str | None:
        """An expected answer other than yes or no."""
        if record.answer.strip().casefold() in (YES, NO):
            return None
        return f"the answer is {record.answer!r}, not yes or no"

    def score_one(self, record: Record, output: Output) -> Score:
        """Score 1 for the right word."""
        said, expected = first_word(output.text), record.answer.strip().casefold()
        counts = {
            "true_positive": int(said == expected == YES),
            "false_positive": int(said == YES and expected == NO),
            "positive": int(expected == YES),
            "yes": int(said == YES),
            "invalid": int(not said),
        }
        return Score(float(said == expected), said, counts)

    def measures(self, scores: Sequence[Score], groups: Groups) -> dict[str, Estimate]:
        """Shares with Wilson intervals, F1 with a bootstrap's; precision is left out without a yes."""
        found = {"accuracy": self.share(scores, groups)}
        for name, among in (("precision", "yes"), ("recall", "positive")):
            places = [place for place, score in enumerate(scores) if score.counts[among]]
            if places:
                hits = [scores[place].counts["true_positive"] for place in places]
                found[name] = share(hits, [groups[place] for place in places])
        twice = ("true_positive", "true_positive")
        f1 = self.of_counts(scores, twice, ("yes", "positive"), groups)
        if f1 is not None:
            found["F1"] = f1.model_copy(update={"n": len(scores)})
        for name, count in (("says yes", "yes"), ("invalid", "invalid")):
            found[name] = share([score.counts[count] for score in scores], groups)
        return found

    def constants(self, records: Sequence[Record]) -> dict[str, list[Output]]:
        """The most frequent answer of each split, and yes to everything."""
        always = [Output(YES)] * len(records)
        return {MOST_FREQUENT: most_frequent_outputs(records), ALWAYS_YES: always}

    def chance(self, records: Sequence[Record], guess: BlindGuess) -> list[float]:
        """One half."""
        return [0.5] * len(records)
