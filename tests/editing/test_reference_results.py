"""Figures of the reference codes on a shared model that knows 320 facts and can be edited.

From a run of the reference implementations on the same model (layers 0 to 2, lambda 5, statistics on
the pristine model): 10 edits PMET 90/85/100, MEMIT 100/95/99, AlphaEdit 100/95/99 (ES/PS/NS); 100
edits S 67.4 (PMET) and 64.4 (MEMIT). Which facts they took is not known, so ours are others.
"""

from __future__ import annotations

import json
import random
from typing import Any

import plain
import pytest

from modalign.data.corpus import Corpus
from modalign.editing.computation import Options
from modalign.editing.edits import Edit, Neighbour
from modalign.editing.methods import (
    MEMIT,
    PMET,
    AlphaEdit,
    AlphaEditConfig,
    MEMITConfig,
    PMETConfig,
)
from modalign.models.open import open_model
from modalign.patches import applied
from tiny import SHARED

FOLDER = SHARED / "models" / "editable_gptj"
CONTEXTS = (
    "The people of the village know that",
    "You can see the river from here",
    "After a long walk",
    "I am happy",
    "Because of the rain",
)
LAYERS = (0, 1, 2)

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="../shared/models/editable_gptj is absent"
)


def edits_of(count: int, different_subjects: bool) -> list[Edit]:
    """Random facts to random other objects of their relation."""
    content = json.loads((FOLDER / "facts.json").read_text(encoding="utf-8"))
    rng = random.Random(1)
    facts = rng.sample(content["facts"], len(content["facts"]))
    seen: set[str] = set()
    edits: list[Edit] = []
    for number, (subject, relation, truth) in enumerate(facts):
        if different_subjects and subject in seen:
            continue
        seen.add(subject)
        templates, objects = content["rels"][relation]
        first, *others = (template.replace("{}", subject) for template in templates)
        target = rng.choice([answer for answer in objects if answer != truth])
        neighbours = [
            Neighbour(templates[0].replace("{}", other), truth)
            for other, kind, answer in content["facts"]
            if (kind, answer) == (relation, truth) and other != subject
        ]
        edits.append(
            Edit(
                str(number), subject, first, first.index(subject), target, truth,
                paraphrases=tuple(others), neighbours=tuple(neighbours[:10]),
            )
        )  # fmt: skip
    return edits[:count]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Options]:
    model, tokenizer = open_model(FOLDER)
    texts = json.loads((FOLDER / "corpus.json").read_text(encoding="utf-8"))[:2000]
    cache = tmp_path_factory.mktemp("cache")
    return model, tokenizer, Options(corpus=Corpus("its corpus", texts), cache=cache)


SETTINGS: dict[str, Any] = {"layers": LAYERS, "contexts": CONTEXTS, "covariance_weight": 5.0}


@pytest.mark.parametrize(
    ("method", "es"),
    [
        (PMET(PMETConfig(**SETTINGS, clamp=4, lr=0.5)), 90),
        (MEMIT(MEMITConfig(**SETTINGS)), 100),
        (AlphaEdit(AlphaEditConfig(layers=LAYERS, contexts=CONTEXTS, l2=0.1)), 100),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_ten_edits(shared: tuple[Any, Any, Options], method: Any, es: float) -> None:
    model, tokenizer, options = shared
    edits = edits_of(10, different_subjects=True)
    patch = method.compute(model, tokenizer, edits, options=options)
    with applied(model, patch):
        scores = plain.plain_scores(model, tokenizer, edits)
    print(method.name, scores)
    assert scores.es >= es - 10  # within one edit of the reference
    assert scores.ns >= 95


@pytest.mark.parametrize(
    ("method", "s"),
    [
        (PMET(PMETConfig(**SETTINGS, clamp=4, lr=0.5)), 67.4),
        (MEMIT(MEMITConfig(**SETTINGS)), 64.4),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_hundred_edits(shared: tuple[Any, Any, Options], method: Any, s: float) -> None:
    model, tokenizer, options = shared
    edits = edits_of(100, different_subjects=False)
    patch = method.compute(model, tokenizer, edits, options=options)
    with applied(model, patch):
        scores = plain.plain_scores(model, tokenizer, edits)
    print(method.name, scores)
    assert scores.s >= s - 5
