"""Views: things that can be asked about an item unambiguously, as variables for templates.

Only what the annotations answer becomes a view. Relations and places keep a margin, so that nobody would
answer differently; named objects must be the only ones of their name.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modalign.data.synthesis.annotations import Box, From, Item, Thing

MARGIN = 0.04  # of the image's side, between two objects and around the lines between places
LARGEST = 0.5  # of the image's side: larger objects have no single place
ABSENT = 6  # absent objects offered per image
FOREIGN = 3  # captions of other images offered per image
ALIKE = 0.4  # share of common words above which a foreign caption may be true as well
_FUNCTION = (
    "a an the and or of in on at to by with for from into over under near is are was be been being it its"
    " his her their this that there while as up down out off some one two"
)
FUNCTION_WORDS = frozenset(_FUNCTION.split())
PLACES = ("x", "y", "x_loc", "y_loc", "width", "height", "w", "h", "box", "bbox", "id")
COLORS = ("color", "colour")  # placed next to the noun: a small yellow square
NOUNS = ("type", "shape", "label", "category", "name")

# Every view's variables; "row" is always available: the fields of the row as in the file.
VARIABLES: dict[From, dict[str, tuple[str, ...]]] = {
    "captions": {
        "caption": ("caption",),
        "statement": ("statement", "holds"),
        "choice": ("first", "second", "fits"),
        "row": (),
    },
    "boxes": {
        "label": ("label", "count"),
        "pair": ("first", "second", "horizontal", "vertical"),
        "place": ("label", "place"),
        "occupied": ("place", "label"),
        "row": (),
    },
    "structure": {
        "attribute": ("name", "value"),
        "claim": ("name", "value", "holds"),
        "kind": ("kind", "count"),
        "only": ("kind", "name", "value"),
        "group": ("kind", "group", "count"),
        "most": ("kind", "group"),
        "pair": ("first", "second", "horizontal", "vertical"),
        "row": (),
    },
}

View = tuple[str, dict[str, Any]]  # which view, its variables


@dataclass(frozen=True)
class Words:
    """The words for values.

    Attributes:
        values: attribute -> value in the data -> word.
        groups: of the groups of a structure, in order.
        noun: for objects without an attribute that names them.
    """

    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    groups: tuple[str, ...] = ("first", "second", "third", "fourth", "fifth", "sixth")
    noun: str = "item"

    def say(self, attribute: str, value: Any) -> str:
        """Return the word for a value."""
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(self.values.get(attribute, {}).get(str(value), value))


class Views:
    """The views of every item of a data set; false statements about one are drawn from the others.

    Args:
        items: all of them.
        kind: which annotations they have.
        words: the words for values of a structure.
    """

    def __init__(self, items: Sequence[Item], kind: From, words: Words) -> None:
        self.items, self.kind, self.words = items, kind, words
        self.images: Counter[str] = Counter()  # label or kind of thing -> images that have it
        self.values: dict[str, set[str]] = defaultdict(set)  # attribute -> words
        for item in items:
            self.images.update({thing.label for thing in item.things})
            if kind == "structure":
                self.images.update(_kinds(self._flat(item), words))
                for name, value in _scalars(item.attributes):
                    self.values[name].add(words.say(name, value))

    def of(self, item: Item, rng: np.random.Generator) -> Iterator[View]:
        """Yield everything that can be asked about one item."""
        yield "row", {}
        if self.kind == "captions":
            yield from self._captions(item, rng)
        elif self.kind == "boxes":
            yield from self._boxes(item, rng)
        else:
            yield from self._structure(item, rng)

    # ------------------------------------------------------------------ captions

    def _captions(self, item: Item, rng: np.random.Generator) -> Iterator[View]:
        for caption in item.captions:
            yield "caption", {"caption": caption}
            yield "statement", {"statement": caption, "holds": True}
        own = item.captions[0]
        for foreign in self._foreign(item, rng):
            yield "statement", {"statement": foreign, "holds": False}
            yield "choice", {"first": own, "second": foreign, "fits": "first"}
            yield "choice", {"first": foreign, "second": own, "fits": "second"}

    def _foreign(self, item: Item, rng: np.random.Generator) -> Iterator[str]:
        """Yield captions of other images that share few words with this one's."""
        known = [_content_words(caption) for caption in item.captions]
        found = 0
        for _ in range(8 * FOREIGN):
            other = self.items[int(rng.integers(len(self.items)))]
            if other.group == item.group:
                continue
            caption = other.captions[int(rng.integers(len(other.captions)))]
            words = _content_words(caption)
            if all(_overlap(words, own) <= ALIKE for own in known):
                yield caption
                found += 1
                if found == FOREIGN:
                    return

    # ------------------------------------------------------------------ boxes

    def _boxes(self, item: Item, rng: np.random.Generator) -> Iterator[View]:
        counts = Counter(thing.label for thing in item.things)
        crowds = {thing.label for thing in item.things if thing.crowd}
        for label, count in counts.items():
            yield "label", {"label": label, "count": None if label in crowds else count}
        for label in self._absent(set(counts), rng):
            yield "label", {"label": label, "count": 0}
        single = [t for t in item.things if counts[t.label] == 1 and not t.crowd]
        yield from pairs([(thing.label, thing.box) for thing in single])
        for thing in single:
            if place := place_of(thing.box):
                yield "place", {"label": thing.label, "place": place}
                if not any(_in_cell(other, place) for other in item.things if other is not thing):
                    yield "occupied", {"label": thing.label, "place": place}

    def _absent(self, present: set[str], rng: np.random.Generator) -> list[str]:
        """Draw objects of other images, frequent ones more often (POPE, arXiv 2305.10355)."""
        names = [name for name in self.images if name not in present]
        if not names:
            return []
        weights = np.array([self.images[name] for name in names], dtype=float)
        count = min(ABSENT, len(names))
        drawn = rng.choice(len(names), size=count, replace=False, p=weights / weights.sum())
        return [names[int(number)] for number in drawn]

    # ------------------------------------------------------------------ structure

    def _flat(self, item: Item) -> list[dict[str, Any]]:
        return [thing for group in item.groups for thing in group]

    def _structure(self, item: Item, rng: np.random.Generator) -> Iterator[View]:
        for name, value in _scalars(item.attributes):
            said = self.words.say(name, value)
            yield "attribute", {"name": name, "value": said}
            yield "claim", {"name": name, "value": said, "holds": True}
            if others := sorted(self.values[name] - {said}):
                wrong = others[int(rng.integers(len(others)))]
                yield "claim", {"name": name, "value": wrong, "holds": False}
        if not item.groups:
            return
        by_group = [_kinds(group, self.words) for group in item.groups]
        counts = sum(by_group, Counter())
        for kind, count in counts.items():
            yield "kind", {"kind": kind, "count": count}
        for kind in self._absent(set(counts), rng):
            yield "kind", {"kind": kind, "count": 0}
        yield from self._only(item, counts)
        if len(item.groups) > 1 and len(item.groups) <= len(self.words.groups):
            yield from self._groups(counts, by_group)
        for group in item.groups:
            boxes = [(_fullest(thing, self.words), _box(thing)) for thing in group]
            yield from pairs([(n, box) for n, box in boxes if box and counts[n] == 1], scale=True)

    def _only(self, item: Item, counts: Counter[str]) -> Iterator[View]:
        """Yield objects that are the only ones of their kind, with an attribute not implied by the kind."""
        for thing in self._flat(item):
            said = _said(thing, self.words)
            for chosen in _subsets(said):
                kind = _name(chosen, self.words)
                if counts[kind] == 1:
                    for name in said.keys() - chosen.keys():
                        yield "only", {"kind": kind, "name": name, "value": said[name]}

    def _groups(self, counts: Counter[str], by_group: list[Counter[str]]) -> Iterator[View]:
        for kind in counts:
            numbers = [group[kind] for group in by_group]
            for name, number in zip(self.words.groups, numbers, strict=False):
                yield "group", {"kind": kind, "group": name, "count": number}
            if numbers.count(max(numbers)) == 1:
                most = self.words.groups[numbers.index(max(numbers))]
                yield "most", {"kind": kind, "group": most}


# --- geometry -----------------------------------------------------------------------------------


def pairs(named: Sequence[tuple[str, Box]], scale: bool = False) -> Iterator[View]:
    """Yield ordered pairs that are clearly beside or above each other.

    Args:
        named: unique names with boxes; y grows downwards.
        scale: boxes have their own units, so the margin is relative to their common extent.
    """
    if scale and named:
        lows = [min(box[side] for _, box in named) for side in (0, 1)]
        highs = [max(box[side] for _, box in named) for side in (2, 3)]
        margins = [MARGIN * (high - low) for low, high in zip(lows, highs, strict=True)]
    else:
        margins = [MARGIN, MARGIN]
    for (first, one), (second, two) in itertools.permutations(named, 2):
        horizontal = _order(one, two, 0, margins[0], ("left", "right"))
        vertical = _order(one, two, 1, margins[1], ("above", "below"))
        if horizontal or vertical:
            sides = {"horizontal": horizontal, "vertical": vertical}
            yield "pair", {"first": first, "second": second, **sides}


def _order(one: Box, two: Box, axis: int, margin: float, words: tuple[str, str]) -> str | None:
    if one[axis + 2] + margin <= two[axis]:
        return words[0]
    return words[1] if two[axis + 2] + margin <= one[axis] else None


COLUMNS, ROWS = ("left", "center", "right"), ("top", "center", "bottom")


def place_of(box: Box) -> str | None:
    """Return the ninth of the image with the box, or None if it is large or near a dividing line."""
    if box[2] - box[0] > LARGEST or box[3] - box[1] > LARGEST:
        return None
    across = _third((box[0] + box[2]) / 2)
    down = _third((box[1] + box[3]) / 2)
    if across is None or down is None:
        return None
    return (
        " ".join(dict.fromkeys(w for w in (ROWS[down], COLUMNS[across]) if w != "center"))
        or "center"
    )


def _third(share: float) -> int | None:
    near = any(abs(share - line) < MARGIN for line in (1 / 3, 2 / 3))
    return None if near else min(int(share * 3), 2)


def _in_cell(thing: Thing, place: str) -> bool:
    column = next((i for i, word in enumerate(COLUMNS) if word in place.split()), 1)
    row = next((i for i, word in enumerate(ROWS) if word in place.split()), 1)
    if place == "center":
        column = row = 1
    x1, y1, x2, y2 = thing.box
    return x1 < (column + 1) / 3 and x2 > column / 3 and y1 < (row + 1) / 3 and y2 > row / 3


# --- words --------------------------------------------------------------------------------------


def _content_words(text: str) -> set[str]:
    cleaned = "".join(char.lower() if char.isalnum() else " " for char in text)
    return set(cleaned.split()) - FUNCTION_WORDS


def _overlap(one: set[str], two: set[str]) -> float:
    """Divide shared words by the words of the shorter text; 1 if there are none."""
    smaller = min(len(one), len(two))
    return len(one & two) / smaller if smaller else 1.0


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, str | int | float | bool) and str(value).strip():
            yield name, value


def _said(thing: Mapping[str, Any], words: Words) -> dict[str, str]:
    return {k: words.say(k, value) for k, value in _scalars(thing) if k not in PLACES}


def _subsets(said: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield one or two attributes at a time."""
    for count in (1, 2):
        for names in itertools.combinations(sorted(said), count):
            yield {name: said[name] for name in names}


def _name(chosen: Mapping[str, str], words: Words) -> str:
    noun = next((chosen[name] for name in NOUNS if name in chosen), words.noun)
    adjectives = sorted(set(chosen) - set(NOUNS), key=lambda name: (name in COLORS, name))
    return " ".join((*(chosen[name] for name in adjectives), noun))


def _kinds(things: Sequence[Mapping[str, Any]], words: Words) -> Counter[str]:
    return Counter(
        _name(chosen, words) for thing in things for chosen in _subsets(_said(thing, words))
    )


def _fullest(thing: Mapping[str, Any], words: Words) -> str:
    """Describe an object by two attributes, including the noun if there is one."""
    return _name(list(_subsets(_said(thing, words)))[-1], words) if _said(thing, words) else ""


def _box(thing: Mapping[str, Any]) -> Box | None:
    x, y = thing.get("x", thing.get("x_loc")), thing.get("y", thing.get("y_loc"))
    width = thing.get("width", thing.get("w", thing.get("size")))
    height = thing.get("height", thing.get("h", thing.get("size")))
    numbers = (x, y, width, height)
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        return None
    left, top, wide, high = (float(n) for n in numbers)
    return left, top, left + wide, top + high
