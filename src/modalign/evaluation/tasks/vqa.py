"""VQA accuracy over ten human answers (Antol et al. 2015, arXiv 1505.00468, section 3).

Each human answer is left out in turn; the output scores ``min(1, matches / 3)`` against the other nine, and the
ten scores are averaged. Texts are compared after the normaliser of the public evaluation script: punctuation,
numbers as digits, articles, contractions. The script skips normalisation if all ten answers agree; here every
text is normalised, as the challenge's server and TextVQA do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from modalign.data.records import Record
from modalign.evaluation.tasks.base import Groups, Output, Score, Task
from modalign.numbers.estimate import Estimate

PEOPLE = 10
ENOUGH = 3  # matches for full marks
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = {"a", "an", "the"}
_WORDS_FOR_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", "zero": "0"} | {
    word: str(number) for number, word in enumerate(_WORDS_FOR_NUMBERS, 1)
}
# Words as they should be written; each also matches without one of its apostrophes.
WORDS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't "
    "mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've "
    "shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've there're "
    "there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd "
    "you'd've you'll you're you've "
)
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in WORDS.split()
    for place, letter in enumerate(word)
    if letter == "'"
}
_NUMBER_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # "1.5" keeps its point


def normalise(text: str) -> str:
    """Normalise a text as VQA does: ``"The two dogs, please."`` -> ``"2 dogs please"``."""
    text = _without_punctuation(" ".join(text.split()))
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """Delete marks beside a space and in numbers such as "10,000"; others become spaces."""
    number = _NUMBER_COMMA.search(text) is not None
    result = text
    for sign in PUNCTUATION:
        beside = f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if beside or number else " ")
    return _PERIOD.sub("", result)


def vqa_accuracy(output: str, answers: Sequence[str]) -> float:
    """Return the mean of ``min(1, matches / 3)`` over leaving out one answer; texts must be normalised.

    With m matches among k answers this is ``(m min(1, (m - 1) / 3) + (k - m) min(1, m / 3)) / k``.
    """
    matches = sum(answer == output for answer in answers)
    others = [matches - (answer == output) for answer in answers]
    return sum(min(1.0, found / ENOUGH) for found in others) / len(answers)


class Vqa(Task):
    """VQA accuracy of generated answers."""

    name = "vqa"
    advice = 'write the ten people\'s answers as a list in the field "answers"; with fewer use --task exact'

    def problem(self, record: Record) -> str | None:
        """Other than ten answers."""
        count = len(record.answers)
        return None if count == PEOPLE else f"{count} answers, not ten"

    def score_one(self, record: Record, output: Output) -> Score:
        """Return the agreement, 0 to 1."""
        said, answers = normalise(output.text), [normalise(a) for a in record.answers]
        return Score(vqa_accuracy(said, answers), said, {"matches": answers.count(said)})

    def measures(self, scores: Sequence[Score], groups: Groups) -> dict[str, Estimate]:
        """Mean agreement; the interval is a bootstrap's, since scores lie between 0 and 1."""
        return {"accuracy": self.mean(scores, groups)}
