"""Probe edits: facts that the model knows are given another answer, to try settings on.

They come from a file of facts, or from the user's own edits: their neighbours, whose prompts name other
subjects of the same relation; their own truths; and, if the model knows neither, whatever it says about
an edit's subject. Paraphrases are the edits' own wordings with the probe's subject, and the prompt put
after a sentence that no rewriting prompt begins with. Neighbours are known facts that no probe is about,
or else sentences of the model, whose continuation must not change.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from modalign.editing.benchmarks.scoring import Question, score
from modalign.editing.edits import Edit, Neighbour
from modalign.editing.engine.asking import Asking
from modalign.editing.engine.contexts import sample_contexts
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.layers.facts import Fact
from modalign.errors import DataError
from modalign.models.sampling import sample

PARAPHRASES = 2  # other wordings of a probe, not counting the one after a sentence
NEIGHBOURS = 3  # per probe
POOL = 12  # candidates that the model is asked for, per probe wanted
HELD_OUT = 10_007  # added to the seed: sentences that no rewriting prompt begins with


@dataclass(frozen=True)
class Candidate:
    """A fact that the model may know, other answers to it, and other wordings with ``{}``.

    ``edited`` ones are about a subject that is to be edited; they are used only if others are too few.
    """

    fact: Fact
    others: tuple[str, ...]
    wordings: tuple[str, ...] = ()
    edited: bool = False


@dataclass(frozen=True)
class Probes:
    """The edits that settings are tried on.

    Attributes:
        edits: each with a truth, paraphrases and neighbours.
        own: how many of them ask for something the model says of its own accord, not for a given fact.
    """

    edits: tuple[Edit, ...]
    own: int


def of_edits(edits: Sequence[Edit]) -> list[Candidate]:
    """Make candidates from a file of edits: neighbours first, then the edits' own truths."""
    text = [edit for edit in edits if edit.subject_at is not None and edit.image is None]
    return [*_neighbours(text), *(_own(edit, edit.truth) for edit in text if edit.truth)]


def of_facts(facts: Sequence[Fact]) -> list[Candidate]:
    """Make candidates from facts; other answers are the file's, or those of the same relation."""
    answers: dict[str, list[str]] = {}
    for fact in facts:
        answers.setdefault(fact.relation, []).append(fact.attribute)
    every = list(dict.fromkeys(fact.attribute for fact in facts))
    found = []
    for fact in facts:
        same = [a for a in dict.fromkeys(answers[fact.relation]) if a != fact.attribute]
        named = [fact.other] if fact.other else same or [a for a in every if a != fact.attribute]
        wordings = [
            other.relation
            for other in facts
            if (other.subject, other.attribute) == (fact.subject, fact.attribute)
            and other.relation != fact.relation
        ]
        found.append(Candidate(fact, tuple(named), tuple(wordings)))
    return found


def _own(edit: Edit, truth: str) -> Candidate:
    assert edit.subject_at is not None
    fact = Fact(edit.subject, edit.prompt, edit.subject_at, truth, edit.target, edit.source)
    return Candidate(fact, (edit.target,), _wordings(edit), edited=True)


def _wordings(edit: Edit) -> tuple[str, ...]:
    """Return those of the edit's paraphrases that name the subject once, with ``{}`` in its place."""
    return tuple(
        text.replace(edit.subject, "{}")
        for text in edit.paraphrases
        if text.count(edit.subject) == 1 and "{}" not in text
    )


def _neighbours(edits: Sequence[Edit]) -> Iterator[Candidate]:
    targets = {edit.subject for edit in edits}
    for edit in edits:
        before, after = edit.relation.split("{}", 1)
        pattern = re.compile(re.escape(before) + r"(\S.*)" + re.escape(after))
        for neighbour in edit.neighbours:
            found = pattern.fullmatch(neighbour.prompt) if neighbour.image is None else None
            answer = neighbour.answer or (edit.truth if edit.protocol == "counterfact" else None)
            if found is None or answer is None or found[1] in targets:
                continue
            fact = Fact(found[1], neighbour.prompt, found.start(1), answer, source=edit.source)
            yield Candidate(fact, (edit.target,), _wordings(edit))


def make_probes(
    spec: ModelSpec,
    asking: Asking,
    candidates: Sequence[Candidate],
    edits: Sequence[Edit],
    *,
    wanted: int,
    seed: int,
) -> Probes:
    """Choose probes among candidates that the model knows, else among what it says about the edits' subjects.

    Args:
        spec: the model.
        asking: the form in which it is asked.
        candidates: see :func:`of_edits` and :func:`of_facts`.
        edits: the model is asked about their subjects if too few candidates are known.
        wanted: number of probes.
        seed: of the draw and of the model's sentences.

    Raises:
        DataError: there is nothing to probe with.
    """
    rng = random.Random(seed)
    known: list[Candidate] = []
    for edited in (False, True):
        if len(known) < 2 * wanted:
            tier = [one for one in candidates if one.edited == edited]
            known += _known(spec, asking, _drawn(tier, wanted * POOL, rng))
    chosen = _spread(known, wanted, edits)
    missing = wanted - len(chosen)
    said = _known(spec, asking, list(_said(spec, asking, edits[: wanted * 2])))
    own = [one for one in said if _is_new(one, chosen)][:missing]
    if not chosen and not own:
        raise DataError("no edit has its subject in a text: there is nothing to try settings on")
    kept = [c for c in known if all(c.fact.subject != each.fact.subject for each in chosen)]
    sentence = sample_contexts(spec, asking.tokenizer, seed=seed + HELD_OUT)[0]
    spare = _sentences(spec, asking, seed) if len(kept) < NEIGHBOURS else []
    made = tuple(
        _probe(number, one, kept, spare, sentence, rng)
        for number, one in enumerate([*chosen, *own])
    )
    return Probes(made, len(own))


def _drawn(candidates: Sequence[Candidate], count: int, rng: random.Random) -> list[Candidate]:
    """Draw at most ``count`` candidates, one per prompt, taking the relations in turn."""
    once = {one.fact.prompt: one for one in reversed(candidates)}
    groups: dict[str, list[Candidate]] = {}
    for one in rng.sample(list(once.values()), len(once)):
        groups.setdefault(one.fact.relation, []).append(one)
    turns = [
        one
        for turn in range(len(once))
        for g in groups.values()
        if turn < len(g)
        for one in [g[turn]]
    ]
    return turns[:count]


def _known(spec: ModelSpec, asking: Asking, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those whose attribute is the model's own answer, while another answer is not."""
    questions = [Question(one.fact.prompt, (one.fact.attribute,)) for one in candidates]
    scores = score(spec.model, asking, questions) if questions else []
    return [
        replace(one, others=tuple(o for o in one.others if o != one.fact.attribute))
        for one, (found,) in zip(candidates, scores, strict=True)
        if found.right and any(o != one.fact.attribute for o in one.others)
    ]


def _spread(known: Sequence[Candidate], wanted: int, edits: Sequence[Edit]) -> list[Candidate]:
    """Choose probes of different subjects, except for as large a share as edits share a subject.

    Two facts about one subject are written with almost the same key, which few layers can tell apart. If
    few facts are known, half of them are left as neighbours.
    """
    most = min(wanted, max(1, len(known) // 2)) if known else 0
    once = {one.fact.subject: one for one in reversed(known)}
    repeated = 1 - len({edit.subject for edit in edits}) / max(1, len(edits))
    firsts = [one for one in known if once[one.fact.subject] is one]
    firsts = firsts[: most - round(repeated * most)]
    subjects = {one.fact.subject for one in firsts}
    again = [one for one in known if one.fact.subject in subjects and one not in firsts]
    return [*firsts, *again][:most]


def _is_new(one: Candidate, chosen: Sequence[Candidate]) -> bool:
    return all(one.fact.subject != each.fact.subject for each in chosen)


def _said(spec: ModelSpec, asking: Asking, edits: Sequence[Edit]) -> Iterator[Candidate]:
    """Yield candidates from what the model itself says after the edits' prompts: its first word there."""
    for edit in edits:
        if edit.subject_at is None or edit.image is not None:
            continue
        answer = _first_word(spec, asking, edit.prompt)
        if answer and answer != edit.target:
            yield _own(edit, answer)


def _first_word(spec: ModelSpec, asking: Asking, prompt: str, tokens: int = 8) -> str:
    ids = torch.tensor([asking.text(prompt).ids])
    greedy = sample(spec.language, ids, tokens, torch.Generator().manual_seed(0), top=1)[0]
    said = asking.tokenizer.decode(greedy[ids.shape[1] :].tolist(), skip_special_tokens=True)
    word = re.match(r"\s*(\w[\w'-]*)", said)
    return word[1] if word else ""


def _sentences(spec: ModelSpec, asking: Asking, seed: int) -> list[Neighbour]:
    """Return sentences that the model writes, and the word that follows each."""
    texts = sample_contexts(spec, asking.tokenizer, seed=seed + 2 * HELD_OUT)
    found = ((text, _first_word(spec, asking, text)) for text in texts if text.strip())
    named = [(text, word) for text, word in found if word]
    scores = score(spec.model, asking, [Question(text, (word,)) for text, word in named])
    # Cut off from its sentence, a word need not be what the model says next.
    return [Neighbour(*one) for one, (said,) in zip(named, scores, strict=True) if said.right]


def _probe(
    number: int,
    one: Candidate,
    kept: Sequence[Candidate],
    spare: Sequence[Neighbour],
    sentence: str,
    rng: random.Random,
) -> Edit:
    fact = one.fact
    target = rng.choice(one.others)
    same = [c.fact for c in kept if c.fact.relation == fact.relation]
    near = [f for f in same if f.attribute != target] or [
        c.fact for c in kept if c.fact.attribute != target
    ]
    neighbours = [Neighbour(f.prompt, f.attribute) for f in rng.sample(near, len(near))]
    neighbours += [each for each in spare if each.answer != target]
    wordings = [w.replace("{}", fact.subject) for w in one.wordings[:PARAPHRASES]]
    return replace(
        fact.edit(target),
        id=str(number),
        paraphrases=(*wordings, f"{sentence}. {fact.prompt}"),
        neighbours=tuple(neighbours[:NEIGHBOURS]),
    )
