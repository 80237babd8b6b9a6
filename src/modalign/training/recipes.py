"""Recipes: which data a connector is trained on, and in which order (the survey's data-driven family).

A recipe changes only the records of the stages, not the connector. Every recipe runs under the same budget,
so two of them differ only in data and curriculum. A method's name includes its recipe after a plus:
``mlp+captions_first``.

Every record has one kind:

* ``text``: no media;
* ``captions``: it describes its media without a question: its only user turn contains only media,
  or its skill, or a field ``kind`` of its row, is ``caption``;
* ``instructions``: every other record with media.

Sources of the curricula: captions first, LLaVA (arXiv 2304.08485), whose first stage trains the
connector alone; domain first, LLaVA-Med (arXiv 2306.00890); text-only records mixed in, LLaVA-1.5
(arXiv 2310.03744). The shares in recipes.yaml are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from modalign.data.records import Media, Record
from modalign.data.supervision import Sample
from modalign.errors import UsageError, choose
from modalign.training.settings import RecordKind, Stage

SEPARATOR = "+"  # between a connector's name and its recipe's
DOMAIN = "domain:"
LARGEST = "*"


class Recipe(BaseModel):
    """A named curriculum.

    Attributes:
        name: exact, e.g. ``captions_first``.
        title: name of the report's group.
        stages: with shares that add up to 1.
        control: shows the score without what is being tested; never recommended.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    stages: tuple[Stage, ...]
    control: bool = False


RECIPES = {
    name: Recipe(name=name, **fields)
    for name, fields in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()).items()
}


def resolve_recipe(name: str) -> Recipe:
    """Return the recipe of exactly this name; ``domain_first:counting`` gives its domain.

    Raises:
        UsageError: there is none.
    """
    plain, colon, domain = name.partition(":")
    if plain not in RECIPES or (colon and (plain != "domain_first" or not domain.strip())):
        hint = choose("" if plain in RECIPES else plain, RECIPES)
        raise UsageError(f"no recipe is called {name!r}; {hint}; domain_first:SKILL names a domain")
    recipe = RECIPES[plain]
    if not colon:
        return recipe
    first = recipe.stages[0].model_copy(update={"data": DOMAIN + domain.strip()})
    title = f"{recipe.title}: {domain.strip()}"
    stages = (first, *recipe.stages[1:])
    return recipe.model_copy(update={"name": name, "title": title, "stages": stages})


def recipe_names(choice: Sequence[str]) -> list[str]:
    """Return names in order without repeats, with ``all`` expanded.

    Raises:
        UsageError: an unknown name.
    """
    words = [word.strip() for word in choice if word.strip()]
    named = [name for word in words for name in (RECIPES if word == "all" else (word,))]
    return [resolve_recipe(name).name for name in dict.fromkeys(named)]


def kind_of(record: Record) -> RecordKind:
    """Return the kind of a record, by the rules above."""
    if not any(True for _ in record.media()):
        return "text"
    asked = [message.text for message in record.messages if message.role == "user"]
    wordless = len(asked) == 1 and not asked[0].strip()
    said = "caption" in (record.skill, record.extra.get("kind"))
    return "captions" if wordless or said else "instructions"


def of_domain(record: Record, domain: str) -> bool:
    """Whether a record's skill, or the field ``domain`` or ``source`` of its row, is this one."""
    return domain in (record.skill, record.extra.get("domain"), record.extra.get("source"))


def select(
    samples: Sequence[Sample], stage: Stage, seed: int, text: Sequence[Sample] = ()
) -> Sequence[Sample]:
    """Return the samples of a stage, in their given order, then those mixed in.

    Args:
        samples: the training data.
        stage: the stage, of which ``data``, ``pairs`` and ``mix`` are used.
        seed: seed of the mixing and shuffling.
        text: further records without media (``data.text``), only for ``text``.

    Raises:
        UsageError: the data lacks records for the stage; the message says what to do.
    """
    if stage.data == "all" and stage.pairs == "true" and not stage.mix:
        return samples  # not iterated: there may be millions
    chosen = of_selector(samples, stage.data, stage, text)
    room = 1 - sum(stage.mix.values())
    rng = np.random.default_rng([seed, 2311])
    mixed: list[Sample] = []
    for kind, share in sorted(stage.mix.items()):
        pool = of_selector(samples, kind, stage, text)
        mixed += drawn(pool, round(len(chosen) * share / room), rng)
    together = [*chosen, *mixed]
    return shuffled_pairs(together, rng) if stage.pairs == "shuffled" else together


def check_data(
    name: str, stages: Sequence[Stage], samples: Sequence[Sample], text: Sequence[Sample] = ()
) -> list[str]:
    """Check, before step 0, that the data has the records of every stage of a method.

    Returns:
        The stages' data, for the report; empty for one stage over all records.

    Raises:
        UsageError: see :func:`select`.
    """
    seen = []
    for stage in stages:
        if stage.runs == "stage_one":  # has its own checks
            continue
        if stage.roles:
            pools = {r: of_selector(samples, data, stage, text) for r, data in stage.roles.items()}
            shown = ", ".join(f"{len(pool):,} {role}" for role, pool in pools.items())
            seen.append(f"{stage.name} on roles ({shown} records)")
            continue
        found = select(samples, stage, 0, text)
        data = DOMAIN + largest_domain(samples) if stage.data == DOMAIN + LARGEST else stage.data
        added = "".join(f" with {share:.0%} {kind}" for kind, share in stage.mix.items())
        whose = ", every medium replaced by another record's" if stage.pairs == "shuffled" else ""
        seen.append(f"{stage.name} {data}{added} ({len(found):,} records{whose})")
    plain = (stage.data == "all" and stage.pairs == "true" for stage in stages)
    if all(plain) and not any(stage.mix or stage.roles for stage in stages):
        return []
    return [f"{name} trains on: {'; '.join(seen)}."]


def of_selector(
    samples: Sequence[Sample], data: str, stage: Stage, text: Sequence[Sample]
) -> list[Sample]:
    """Return the samples of a stage's ``data``, or of one of its roles.

    Raises:
        UsageError: there is none.
    """
    if data == "all":
        return list(samples)
    if data.startswith(DOMAIN):
        domain = data.removeprefix(DOMAIN)
        domain = largest_domain(samples) if domain == LARGEST else domain
        found = [sample for sample in samples if of_domain(sample.record, domain)]
    elif data == "media":
        found = [sample for sample in samples if sample.media]
    else:
        found = [sample for sample in samples if kind_of(sample.record) == data]
        found += text if data == "text" else ()
    if not found:
        raise UsageError(
            f"stage {stage.name!r}: the training data has no {_missing(data, samples)}"
        )
    return found


_ADVICE = {
    "media": "record with media; check the media fields of the training file",
    "captions": (
        "captions (a record whose only user turn holds media alone, or of the skill 'caption'); "
        "add some to it: 'modalign data build' makes them from captions you have, or use another "
        "recipe"
    ),
    "instructions": (
        "instruction records (a question about media and its answer); 'modalign data build' makes "
        "them from captions, boxes or annotations"
    ),
    "text": "record without media; name a file of such records in data.text, or use another recipe",
}


def _missing(data: str, samples: Sequence[Sample]) -> str:
    if not data.startswith(DOMAIN):
        return _ADVICE[data]
    skills = sorted({sample.record.skill for sample in samples if sample.record.skill})
    return (
        f"record whose skill, domain or source is {data.removeprefix(DOMAIN)!r}; its skills are "
        f"{', '.join(skills[:20]) or 'not given'}"
    )


def largest_domain(samples: Sequence[Sample]) -> str:
    """Return the most frequent skill of instruction records; the first by name of equal ones.

    Raises:
        UsageError: no instruction record has a skill.
    """
    records = [sample.record for sample in samples]
    counts = Counter(r.skill for r in records if r.skill and kind_of(r) == "instructions")
    if not counts:
        raise UsageError(
            "domain_first: no instruction record of the training data names its skill; fill in the "
            "field skill, or name a domain or source that the rows have: domain_first:NAME"
        )
    return min(counts, key=lambda skill: (-counts[skill], skill))


def drawn(pool: Sequence[Sample], count: int, rng: np.random.Generator) -> list[Sample]:
    """Draw ``count`` of the pool, each equally often (within one), in random order."""
    rounds = max(-(-count // len(pool)), 1)
    order = np.concatenate([rng.permutation(len(pool)) for _ in range(rounds)])
    return [pool[int(place)] for place in order[:count]]


def shuffled_pairs(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """Replace every medium by a random one of the same modality from another group.

    Each is drawn separately: if one image always replaced another, a model could memorise
    the answers that go with it.

    Raises:
        UsageError: a medium is the only one of its modality, or all are of one group.
    """
    pools: dict[str, list[tuple[Media, object]]] = {}
    for sample in samples:
        for medium in sample.media:
            pools.setdefault(medium.modality, []).append((medium, _group(sample)))

    def another(medium: Media, group: object) -> Media:
        pool = pools[medium.modality]
        if not any(owner != group and other != medium for other, owner in pool):
            raise UsageError(
                f"pairs cannot be shuffled: all {medium.modality} media belong to one group; give "
                "records of different media different groups"
            )
        while True:
            other, owner = pool[int(rng.integers(len(pool)))]
            if owner != group and other != medium:
                return other

    return [
        replace(sample, media=tuple(another(medium, _group(sample)) for medium in sample.media))
        for sample in samples
    ]


def _group(sample: Sample) -> object:
    return sample.record.group or sample.media
