"""What generators read in a prompt: its words, and numbers in digits or words."""

from __future__ import annotations

import re

# fmt: off
_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)
# fmt: on
NUMBERS = {word: value for value, word in enumerate(_WORDS)}
_TOKEN = re.compile(r"-?\d+(?:\.\d+)?|[a-z]+#?\d?")


def words_of(prompt: str) -> list[str]:
    """Return the lower-cased words and numbers of a prompt, in order."""
    return _TOKEN.findall(prompt.lower())


def numbers_of(prompt: str) -> list[float]:
    """Return the numbers of a prompt, in digits or in words up to twelve, in order."""
    found = []
    for word in words_of(prompt):
        if word in NUMBERS:
            found.append(float(NUMBERS[word]))
        elif word[0].isdigit() or word[0] == "-":
            found.append(float(word))
    return found
