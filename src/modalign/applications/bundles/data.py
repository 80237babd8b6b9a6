"""Read items and bundles of shopping sessions, split them, and make questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import numpy as np

from modalign.applications.rows import Row, read_all, refuse_repeated
from modalign.errors import DataError
from modalign.index.lexical import Scores

SHOWN = 5  # items shown of a bundle, at most
NEGATIVES = 9


@dataclass(frozen=True)
class Bundle:
    """Items (places in the catalogue) that one shopping session put together."""

    items: tuple[int, ...]
    session: str


@dataclass(frozen=True)
class Catalogue:
    """All items and bundles.

    Attributes:
        ids, titles: of items.
        bundles: those of two items or more.
        single: number of bundles of one item, which are left out.
        repeated: number of bundles equal to an earlier one of their session, also left out.
    """

    ids: list[str]
    titles: list[str]
    bundles: list[Bundle]
    single: int = 0
    repeated: int = 0

    def places(self, ids: Sequence[str]) -> list[int]:
        """Return the places of items.

        Raises:
            DataError: one is not in the catalogue.
        """
        known = {name: place for place, name in enumerate(self.ids)}
        unknown = [name for name in ids if name not in known]
        if unknown:
            named = ", ".join(map(repr, unknown[:5]))
            raise DataError(f"no item has the id {named}; ids are those of item_titles.csv")
        return [known[name] for name in ids]


def read_catalogue(folder: Path) -> Catalogue:
    """Read ``item_titles.csv``, ``bundle_item.csv`` and ``session_bundle.csv``, as BundleRec writes them.

    Raises:
        DataError: there are unusable rows or items without a title, or no bundle has two items.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder with item_titles.csv, bundle_item.csv and session_bundle.csv"
        )
    items = read_all(
        folder / "item_titles.csv",
        lambda row: (row.text("item ID"), row.text("titles"), row.source),
    )
    refuse_repeated(((name, source) for name, _, source in items), "item ID")
    known = {name: place for place, (name, _, _) in enumerate(items)}

    def pair(row: Row) -> tuple[str, int]:
        name = row.text("item ID")
        if name not in known:
            raise ValueError(f"the item {name!r} has no title in item_titles.csv")
        return row.text("bundle ID"), known[name]

    held: dict[str, list[int]] = {}
    for name, place in read_all(folder / "bundle_item.csv", pair):
        held.setdefault(name, []).append(place)
    told = read_all(
        folder / "session_bundle.csv", lambda row: (row.text("bundle ID"), row.text("session ID"))
    )
    sessions = dict(told)
    found = [
        Bundle(tuple(sorted(set(own))), sessions.get(name, f"bundle {name}"))
        for name, own in held.items()
    ]
    several = [bundle for bundle in found if len(bundle.items) > 1]
    if not several:
        raise DataError(f"{folder}: every bundle has one item: there is nothing to complete")
    distinct = list(dict.fromkeys(several))
    titles = [unescape(title) for _, title, _ in items]
    return Catalogue([name for name, _, _ in items], titles, distinct, len(found) - len(several),
                     len(several) - len(distinct))  # fmt: skip


def split(
    bundles: Sequence[Bundle], by: Callable[[Bundle], object], seed: int
) -> tuple[list[Bundle], list[Bundle]]:
    """Split into training (seven tenths of the groups) and test bundles (the last two)."""
    groups = list(dict.fromkeys(by(bundle) for bundle in bundles))
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    first, last = round(0.7 * len(groups)), len(groups) - max(1, round(0.2 * len(groups)))
    train, test = ({groups[at] for at in part} for part in (order[:first], order[last:]))
    return [b for b in bundles if by(b) in train], [b for b in bundles if by(b) in test]


@dataclass(frozen=True)
class Question:
    """Which of the candidates, the first of them right, belongs to the items shown?"""

    shown: tuple[int, ...]
    candidates: tuple[int, ...]
    session: str


def questions(
    bundles: Sequence[Bundle], count: int, seed: int, alike: Scores | None = None
) -> list[Question]:
    """Hide one item of each bundle among nine others: random ones, or those with the most similar titles.

    Args:
        bundles: of two items or more.
        count: number of all items.
        seed: of what is hidden and drawn.
        alike: (count, count) similarity of titles, for look-alikes.
    """
    rng, found = np.random.default_rng(seed), []
    for bundle in bundles:
        hidden = int(rng.choice(bundle.items))
        shown = tuple(item for item in bundle.items if item != hidden)[:SHOWN]
        allowed = np.setdiff1d(np.arange(count), bundle.items)
        few = min(NEGATIVES, len(allowed))
        if alike is None:
            others = rng.choice(allowed, few, replace=False)
        else:
            others = allowed[np.argsort(-alike[hidden, allowed], kind="stable")[:few]]
        found.append(Question(shown, (hidden, *map(int, others)), bundle.session))
    return found
