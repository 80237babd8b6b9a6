"""Balance answers, so that the wording of a question says nothing about its answer."""

from __future__ import annotations

from collections import Counter

from modalign.data.synthesis.templates import Template


class Balance:
    """Counts of questions and answers.

    If a template offers options, an answer is refused while another option has been used less
    often, over the template and for the same question: counts then differ by at most one, both
    ways. Open answers are not refused; rarer ones go first (:meth:`rank`).
    """

    def __init__(self) -> None:
        self.answers: dict[str, Counter[str]] = {}
        self._questions: Counter[tuple[str, str, str]] = Counter()

    def wants(self, template: Template, question: str, answer: str) -> bool:
        """Whether one more of this answer keeps the options balanced."""
        if answer not in template.options:
            return True
        given = self.answers.get(template.name, Counter())
        asked = [self._questions[template.name, question, option] for option in template.options]
        return (
            given[answer] <= min(given[option] for option in template.options)
            and self._questions[template.name, question, answer] <= min(asked)
        )  # fmt: skip

    def rank(self, template: Template, question: str, answer: str) -> tuple[int, int]:
        """Return a sort key: rare questions with this answer first, then rare answers."""
        given = self.answers.get(template.name, Counter())
        return self._questions[template.name, question, answer], given[answer]

    def add(self, template: Template, question: str, answer: str) -> None:
        """Count a record."""
        self.answers.setdefault(template.name, Counter())[answer] += 1
        self._questions[template.name, question, answer] += 1
