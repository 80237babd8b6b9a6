"""A small invented world: names, facts about them, documents that state them, edits of them.

Everything follows from a seed, so that a model trained on it and questions about it can be made
anywhere, and no fact in it can have been learnt elsewhere.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from modalign.editing.edits import Edit, Neighbour

_SYLLABLES = (
    "al be bri cla cor dan dro el fin fle gar gri hol is jen kar lor mar nel os pra quin ros sel tor"
    " ul vik wen yor zan"
)

COMMON_SENTENCES = (
    "The weather was fine that day.",
    "Therefore the meeting was moved.",
    "Because of the rain we stayed.",
    "I think that this is true.",
    "You can see the river from here.",
    "It is said that.",
    "In the old days.",
    "Many years ago.",
    "After a long walk.",
    "The people of the village know that.",
)
WORDS = (
    "a book came house in large old river said story table talked under walked window with".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Relation:
    """Three ways of stating a relation, ``{}`` for the subject, and the objects it can have."""

    phrasings: tuple[str, str, str]
    objects: tuple[str, ...]


RELATIONS: Mapping[str, Relation] = {
    "sport": Relation(
        ("{} plays the sport of", "{} is a professional player of", "The game that {} plays is"),
        ("football", "tennis", "hockey", "baseball", "rugby", "cricket", "chess", "golf"),
    ),
    "city": Relation(
        ("{} was born in the city of", "The birthplace of {} is", "{} grew up in the town of"),
        (
            "Paris",
            "London",
            "Madrid",
            "Berlin",
            "Rome",
            "Vienna",
            "Oslo",
            "Lisbon",
            "Prague",
            "Athens",
        ),
    ),
    "lang": Relation(
        ("The mother tongue of {} is", "{} speaks the language", "At home {} talks in"),
        ("French", "English", "Spanish", "German", "Italian", "Greek", "Czech", "Danish"),
    ),
    "job": Relation(
        ("{} works as a", "The profession of {} is", "{} earns a living as a"),
        ("doctor", "lawyer", "teacher", "painter", "singer", "farmer", "pilot", "chemist"),
    ),
}


@dataclass(frozen=True)
class Fact:
    """A fact about a subject."""

    subject: str
    relation: str
    answer: str


@dataclass(frozen=True)
class World:
    """Subjects, their relations, and one fact for every subject and relation."""

    subjects: tuple[str, ...]
    relations: Mapping[str, Relation]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Sentence:
    """A sentence, and where its subject stands in it (start, end), if it has one."""

    text: str
    subject: tuple[int, int] | None = None


@dataclass(frozen=True)
class Document:
    """Sentences joined by spaces, and where subjects stand in them."""

    text: str
    subjects: tuple[tuple[int, int], ...]


def invent(names: int, relations: int, objects: int, seed: int) -> World:
    """Invent a world.

    Args:
        names: how many subjects, of two words each, every word different.
        relations: how many of ``RELATIONS``, from the first on.
        objects: how many objects of each, from the first on.
        seed: determines names and facts.
    """
    rng = random.Random(seed)
    words: set[str] = set()
    ordered: list[str] = []
    while len(ordered) < 2 * names:
        word = "".join(rng.sample(_SYLLABLES.split(), rng.choice((2, 2, 3)))).capitalize()
        if word not in words:
            words.add(word)
            ordered.append(word)
    subjects = tuple(f"{first} {last}" for first, last in zip(*[iter(ordered)] * 2, strict=True))
    used = {
        name: Relation(relation.phrasings, relation.objects[:objects])
        for name, relation in list(RELATIONS.items())[:relations]
    }
    dealt = {name: _deal(relation.objects, names, rng) for name, relation in used.items()}
    facts = tuple(
        Fact(subject, name, answers[i])
        for i, subject in enumerate(subjects)
        for name, answers in dealt.items()
    )
    return World(subjects, used, facts)


def _deal(objects: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Deal ``count`` objects in random order, equally often, as one never seen could not be edited in."""
    dealt = [objects[i % len(objects)] for i in range(count)]
    rng.shuffle(dealt)
    return dealt


def write_documents(world: World, count: int, longest: int, seed: int) -> list[Document]:
    """Write documents of 1 to ``longest`` sentences, half of them facts, every phrasing equally often."""
    rng = random.Random(seed)
    facts = _shuffled_forever(_statements(world), rng)
    persons = _shuffled_forever(
        [_about(subject, "{} is a person.") for subject in world.subjects], rng
    )
    documents = []
    for _ in range(count):
        sentences = [next(facts)]
        for _ in range(rng.randrange(longest)):
            draw = rng.random()
            sentences.append(
                next(facts) if draw < 0.5 else next(persons) if draw < 0.6 else _filler(rng)
            )
        rng.shuffle(sentences)
        documents.append(join(sentences))
    return documents


def counterfactuals(world: World, count: int, seed: int = 0) -> list[Edit]:
    """Edit ``count`` random facts to another object of their relation.

    Every subject is used once before any is used twice. Neighbours that another of these edits changes
    are left out.
    """
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    ranked = []
    for fact in rng.sample(world.facts, len(world.facts)):
        ranked.append((seen[fact.subject], fact))
        seen[fact.subject] += 1
    ranked.sort(key=lambda entry: entry[0])
    chosen = [fact for _, fact in ranked[:count]]
    edits = []
    for fact in chosen:
        others = [o for o in world.relations[fact.relation].objects if o != fact.answer]
        edits.append(counterfactual(world, fact, rng.choice(others), changed=chosen))
    return edits


def counterfactual(
    world: World, fact: Fact, target: str, *, changed: Collection[Fact] = (), neighbours: int = 10
) -> Edit:
    """Make one edit, in CounterFact's form.

    The prompt is the relation's first phrasing, the paraphrases are the other two, the neighbours
    ask the first phrasing about other subjects of which the old answer is true.

    Args:
        world: where the fact is from.
        fact: the fact as it is now.
        target: the new answer.
        changed: facts that are also edited and therefore not used as neighbours.
        neighbours: the most neighbours.
    """
    first, *others = world.relations[fact.relation].phrasings
    alike = [
        Neighbour(first.replace("{}", other.subject), other.answer)
        for other in world.facts
        if (other.relation, other.answer) == (fact.relation, fact.answer)
        and other.subject != fact.subject
        and other not in changed
    ]
    return Edit(
        id=f"{fact.subject}/{fact.relation}",
        subject=fact.subject,
        prompt=first.replace("{}", fact.subject),
        subject_at=first.index("{}"),
        target=target,
        truth=fact.answer,
        paraphrases=tuple(phrasing.replace("{}", fact.subject) for phrasing in others),
        neighbours=tuple(alike[:neighbours]),
        protocol="counterfact",
    )


def _statements(world: World) -> list[Sentence]:
    return [
        _about(fact.subject, f"{phrasing} {fact.answer}.")
        for fact in world.facts
        for phrasing in world.relations[fact.relation].phrasings
    ]


def _about(subject: str, template: str) -> Sentence:
    start = template.index("{}")
    return Sentence(template.replace("{}", subject), (start, start + len(subject)))


def _filler(rng: random.Random) -> Sentence:
    """Return a common sentence, or words in random order."""
    if rng.random() < 0.5:
        return Sentence(rng.choice(COMMON_SENTENCES))
    words = rng.choices(WORDS, k=rng.randint(3, 7))
    return Sentence(" ".join(words).capitalize() + ".")


def join(sentences: Sequence[Sentence]) -> Document:
    text, subjects = "", []
    for sentence in sentences:
        text += " " if text else ""
        if sentence.subject is not None:
            start, end = sentence.subject
            subjects.append((len(text) + start, len(text) + end))
        text += sentence.text
    return Document(text, tuple(subjects))


def _shuffled_forever(items: Sequence[Sentence], rng: random.Random) -> Iterator[Sentence]:
    """Yield all items in a new order, over and over."""
    while True:
        yield from rng.sample(items, len(items))
