"""The same facts asked in other forms: cloze, choice, reversed, odd one out, comprehension, paraphrase, free.

A model that no longer completes a sentence may still pick the right option: how a fact is asked decides what an
evaluation sees (ReLU, arXiv 2411.15477). All of this is pure: a record's forms depend on the seed, the record and
the other answers of its relation, never on the order of the rows.

A record may say more than question and answer: ``skill`` (or a field ``relation``) is its relation, whose other
answers distract; ``subject`` the words of the question that name what it is about; ``paraphrases`` a list of other
wordings; ``options`` what is to be offered instead of other records' answers.
"""

from __future__ import annotations

import hashlib
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from modalign.data.modalities import DEFAULT
from modalign.data.readers import read_records
from modalign.data.records import Media, Message, Record
from modalign.data.validation import validate
from modalign.errors import DataError, UsageError, choose, grouped

REWORDED = ("Question: {}\nAnswer:", "Please complete: {}", "Here is what I ask you: {}")
GAP = "___"
LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Fact:
    """A record with what its forms need.

    Attributes:
        record: with one question and one answer.
        relation: whose other answers are distractors.
        subject: words of the question; empty if unknown.
        others: other answers, sorted.
    """

    record: Record
    relation: str
    subject: str
    others: tuple[str, ...]

    @property
    def question(self) -> str:
        """The last question's text."""
        return self.record.messages[-2].text.strip()

    @property
    def answer(self) -> str:
        """The expected answer."""
        return self.record.answer

    @property
    def statement(self) -> str:
        """Question and answer as one text."""
        return f"{self.question} {self.answer}."


@dataclass(frozen=True)
class Asked:
    """One form of a fact: its question, answer, and options (those of the answer's own words)."""

    question: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass
class Reformatted:
    """Records of all forms, and how many facts a form could not be made of."""

    records: list[Record]
    left_out: Counter[str] = field(default_factory=Counter)


Form = Callable[[Fact, Sequence[Fact], np.random.Generator], list[Asked]]


def read_questions(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    modalities: Sequence[str] = DEFAULT,
) -> list[Record]:
    """Read and check a file of questions with answers.

    Raises:
        DataError: it cannot be read, or rows are broken; names them.
    """
    found = read_records(path, modalities=modalities, columns=columns)
    return list(validate(found, modalities=modalities).records)


def facts_of(records: Sequence[Record], pool: Sequence[Record] = ()) -> list[Fact]:
    """Return records as facts.

    Args:
        records: question and answer each.
        pool: further records, whose answers and subjects distract as well.

    Raises:
        DataError: records without question and answer, or with equal options; names their rows.
    """
    problems = [(str(r.source), words) for r in records if (words := _problem(r)) is not None]
    if problems:
        lines = "\n  ".join(grouped(problems))
        raise DataError(f"{len(problems)} of {len(records)} records cannot be asked:\n  {lines}")
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    for record in (*records, *pool):
        answers[_relation(record)].setdefault(_plain(record.answer), record.answer)
    found = []
    for record in records:
        known = {_plain(record.answer), *map(_plain, record.answers)}
        offered = {_plain(option): option for option in record.options}
        others = offered or answers[_relation(record)]
        kept = sorted(text for plain, text in others.items() if plain not in known)
        found.append(Fact(record, _relation(record), _subject(record), tuple(kept)))
    return found


def _problem(record: Record) -> str | None:
    if len(record.messages) < 2 or record.messages[-2].role != "user" or not record.answer.strip():
        return "needs a question and an answer"
    options = [_plain(option) for option in record.options]
    if len(set(options)) < len(options):
        return "two options are equal"
    subject = record.extra.get("subject")
    if subject is not None and (not isinstance(subject, str) or subject not in _text(record)):
        return f"the subject {subject!r} is not in its question"
    return None


def reformat(
    records: Sequence[Record],
    forms: Sequence[str] = (),
    *,
    pool: Sequence[Record] = (),
    seed: int = 0,
) -> Reformatted:
    """Ask facts in other forms.

    Args:
        records: question and answer each.
        forms: names of ``FORMS``; none for all.
        pool: further records, whose answers and subjects distract as well.
        seed: of distractors and of the order of options.

    Returns:
        Records whose ``skill`` is the form; ``fact``, ``relation`` and ``subject`` are kept as fields.

    Raises:
        UsageError: an unknown form.
        DataError: records that cannot be asked, or no form could be made.
    """
    chosen = list(forms) or list(FORMS)
    for name in chosen:
        if name not in FORMS:
            raise UsageError(f"no form {name!r}: {choose(name, FORMS)}")
    facts = facts_of(records, pool)
    known = [*facts, *facts_of(pool)]
    made = Reformatted([])
    for name in chosen:
        for fact in facts:
            asked = FORMS[name](fact, known, _rng(seed, name, fact.record.id))
            made.left_out[name] += not asked
            made.records += [_record(fact, name, n, each) for n, each in enumerate(asked)]
    if not made.records:
        raise DataError(
            "no form could be made: they need other answers of the same relation (the field skill or relation)"
        )
    return made


def _record(fact: Fact, form: str, number: int, asked: Asked) -> Record:
    *before, question, answer = fact.record.messages
    media = tuple(part for part in question.parts if isinstance(part, Media))
    said = (
        Message("user", (*media, asked.question)),
        Message(answer.role, (asked.answer,)),
    )
    extra = {"fact": fact.record.id, "relation": fact.relation, "subject": fact.subject}
    return replace(
        fact.record,
        id=f"{fact.record.id}/{form}/{number}",
        messages=(*before, *said),
        skill=form,
        group=fact.record.group or fact.subject or fact.record.id,
        options=asked.options,
        answers=() if asked.options else fact.record.answers,
        extra={key: value for key, value in extra.items() if value},
    )


# ---------------------------------------------------------------------- the forms


def _as_asked(fact: Fact, facts: Sequence[Fact], rng: np.random.Generator) -> list[Asked]:
    return [Asked(fact.question, fact.answer, (fact.answer, *fact.others))]


def _free(fact: Fact, facts: Sequence[Fact], rng: np.random.Generator) -> list[Asked]:
    return [Asked(fact.question, fact.answer)]


def _choice(count: int) -> Form:
    def form(fact: Fact, facts: Sequence[Fact], rng: np.random.Generator) -> list[Asked]:
        if len(fact.others) < count - 1:
            return []
        drawn = rng.choice(len(fact.others), count - 1, replace=False)
        options = [fact.answer, *(fact.others[i] for i in drawn)]
        return [_lettered(fact.question, options, rng)]

    return form


def _lettered(question: str, options: Sequence[str], rng: np.random.Generator) -> Asked:
    """Show options, the right one first as given, in a random order; letters are the answers."""
    order = rng.permutation(len(options)).tolist()
    letters = LETTERS[: len(options)]
    lines = [f"{letter}. {options[i]}" for letter, i in zip(letters, order, strict=True)]
    text = "\n".join([question, *lines, "Answer with the letter of the right option."])
    return Asked(text, letters[order.index(0)], tuple(letters))


def _reversed(fact: Fact, facts: Sequence[Fact], rng: np.random.Generator) -> list[Asked]:
    others = _subjects(facts, fact, lambda each: _plain(each.answer) != _plain(fact.answer))
    if not fact.subject or len(others) < 3:
        return []
    drawn = [others[i] for i in rng.choice(len(others), 3, replace=False)]
    gapped = fact.statement.replace(fact.subject, GAP)
    text = f"{gapped}\nWhat belongs in the gap is"
    return [Asked(text, fact.subject, (fact.subject, *drawn))]


def _odd_one_out(fact: Fact, facts: Sequence[Fact], rng: np.random.Generator) -> list[Asked]:
    shared: dict[str, list[str]] = {}
    for answer in {_plain(each.answer) for each in facts if each.relation == fact.relation}:
        same = _subjects(facts, fact, lambda each, a=answer: _plain(each.answer) == a)  # type: ignore[misc]
        if len(same) >= 3 and answer != _plain(fact.answer):
            shared[answer] = same
    if not fact.subject or not shared:
        return []
    trio = shared[sorted(shared)[int(rng.integers(len(shared)))]]
    drawn = [trio[i] for i in rng.choice(len(trio), 3, replace=False)]
    blank = fact.question.replace(fact.subject, GAP)
    return [_lettered(f"For all but one of these, {blank!r} has the same answer.",
                      [fact.subject, *drawn], rng)]  # fmt: skip


def _comprehension(fact: Fact, facts: Sequence[Fact], rng: np.random.Generator) -> list[Asked]:
    """Ask after a passage of other facts: about the same subject, else of the same relation."""
    asked, answer = fact.question, _plain(fact.answer)
    others = [each for each in facts if each.question != asked and _plain(each.answer) != answer]
    near = [each for each in others if fact.subject and each.subject == fact.subject]
    near = near or [each for each in others if each.relation == fact.relation]
    passages = sorted({each.statement for each in near})
    if not passages or not fact.others:
        return []
    drawn = [passages[i] for i in rng.permutation(len(passages))[:3]]
    options = (fact.answer, *fact.others)
    return [Asked(" ".join([*drawn, fact.question]), fact.answer, options)]


def _paraphrase(fact: Fact, facts: Sequence[Fact], rng: np.random.Generator) -> list[Asked]:
    given = fact.record.extra.get("paraphrases") or ()
    own = [text for text in given if isinstance(text, str)] if isinstance(given, list) else []
    texts = own or [REWORDED[int(rng.integers(len(REWORDED)))].format(fact.question)]
    return [Asked(text, fact.answer, (fact.answer, *fact.others)) for text in texts]


FORMS: dict[str, Form] = {
    "cloze": _as_asked,
    "choice2": _choice(2),
    "choice4": _choice(4),
    "reversed": _reversed,
    "odd_one_out": _odd_one_out,
    "comprehension": _comprehension,
    "paraphrase": _paraphrase,
    "free": _free,
}


def with_invented_subjects(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """Return the records about subjects that nobody knows: names put together from halves of these.

    Every word of a name is half of one subject's word and half of another's, so it is about as long in tokens.

    Raises:
        DataError: fewer than three records name a subject in a field ``subject``.
    """
    known = sorted({_subject(record) for record in records} - {""})
    if len(known) < 3 or not all(_subject(record) for record in records):
        raise DataError(
            "invented names need three different subjects and a field subject in every record; or give a model "
            "that never knew with --never-knew"
        )
    rng, taken, names = np.random.default_rng([seed, 1709]), {*known}, {}
    for subject in known:
        name = subject
        for _ in range(1000):
            parts = [known[i].split() for i in rng.choice(len(known), 2)]
            words = [_crossed(*(p[n % len(p)] for p in parts)) for n in range(len(subject.split()))]
            name = " ".join(words)
            if name not in taken:
                break
        taken.add(name)
        names[subject] = name

    def renamed(text: str) -> str:
        # Longest first: a name may be part of another.
        for old in sorted(names, key=len, reverse=True):
            text = text.replace(old, names[old])
        return text

    found = []
    for record in records:
        messages = tuple(
            replace(m, parts=tuple(renamed(p) if isinstance(p, str) else p for p in m.parts))
            for m in record.messages
        )  # fmt: skip
        options = tuple(renamed(option) for option in record.options)
        extra = {**record.extra, "subject": names[_subject(record)]}
        found.append(replace(record, messages=messages, options=options, extra=extra))
    return found


def _crossed(first: str, second: str) -> str:
    return first[: (len(first) + 1) // 2] + second[(len(second) + 1) // 2 :].lower()


def _subjects(
    facts: Sequence[Fact], fact: Fact, wanted: Callable[[Fact], bool]
) -> list[str]:  # fmt: skip
    """Return other subjects of a fact's relation, sorted."""
    same = (each for each in facts if each.relation == fact.relation and wanted(each))
    return sorted({each.subject for each in same} - {"", fact.subject})


def _rng(seed: int, form: str, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{form}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _relation(record: Record) -> str:
    return record.skill or str(record.extra.get("relation") or "")


def _subject(record: Record) -> str:
    found = record.extra.get("subject")
    return found if isinstance(found, str) else ""


def _text(record: Record) -> str:
    return record.messages[-2].text


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
