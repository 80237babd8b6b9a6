"""A little SVG: escaped elements, scales with round ticks, family marks, labels side by side.

Colours come from the page's style sheet by class, so one drawing serves light and dark. Numbers are
rounded, nothing is random: equal input gives equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Box = tuple[float, float, float, float]  # left, top, right, bottom

CHARACTER = 6.7  # mean width of a 12 px character of the system font, on the safe side
LINE = 15.0


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return str(value)


def tag(name: str, *children: str, **attributes: object) -> str:
    """One element; ``class_`` and ``stroke_width`` become ``class`` and ``stroke-width``.

    Children are markup already; use :func:`text` for anything that is not.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{pairs}>{''.join(children)}</{name}>"


def text(content: str, x: float, y: float, **attributes: object) -> str:
    """A piece of text, escaped."""
    return tag("text", escape(content), x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> str:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def polyline(points: Sequence[tuple[float, float]], **attributes: object) -> str:
    """A path through points."""
    return tag(
        "polyline", points=" ".join(f"{_text(x)},{_text(y)}" for x, y in points), **attributes
    )


def document(width: float, height: float, label: str, *children: str) -> str:
    """A whole drawing with a description for readers who do not see it."""
    return tag(
        "svg",
        *children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_text(width)} {_text(height)}",
        role="img",
        aria_label=label,
    )


def mark(family: str, x: float, y: float, size: float = 5.5, **attributes: object) -> str:
    """The family's own shape: circle, square, triangle or diamond."""
    s = size
    if family == "perceiver":
        a = s * 0.9
        return tag("rect", x=x - a, y=y - a, width=2 * a, height=2 * a, **attributes)
    if family == "tool":
        corners = [(x, y - s * 1.15), (x + s * 1.1, y + s * 0.85), (x - s * 1.1, y + s * 0.85)]
    elif family == "data":
        corners = [(x, y - s * 1.25), (x + s * 1.25, y), (x, y + s * 1.25), (x - s * 1.25, y)]
    else:
        return tag("circle", cx=x, cy=y, r=s, **attributes)
    return tag(
        "polygon", points=" ".join(f"{_text(a)},{_text(b)}" for a, b in corners), **attributes
    )


@dataclass(frozen=True)
class Scale:
    """From values to positions; a logarithmic one keeps a place of its own for zero."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: float | None = None  # position of the value 0 on a logarithmic scale

    def __call__(self, value: float) -> float:
        """Position of a value."""
        if not self.log:
            return self.start + self._share(value, self.low, self.high) * (self.end - self.start)
        if value <= 0:
            return self.start if self.zero is None else self.zero
        share = self._share(math.log10(value), math.log10(self.low), math.log10(self.high))
        return self.start + share * (self.end - self.start)

    @staticmethod
    def _share(value: float, low: float, high: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self, count: int = 6) -> list[float]:
        """Round values inside the range."""
        if not self.log:
            step = _round_step((self.high - self.low) / max(count, 1))
            first = math.ceil(self.low / step - 1e-9)
            last = math.floor(self.high / step + 1e-9)
            return [round(step * i, 10) for i in range(first, last + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
            values = [f * 10.0**d for d in decades for f in factors]
            inside = [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]
            if len(inside) >= 3:
                break
        return inside


def _round_step(raw: float) -> float:
    if raw <= 0:
        return 1.0
    base = 10.0 ** math.floor(math.log10(raw))
    return next(f * base for f in (1, 2, 2.5, 5, 10) if f * base >= raw * 0.999)


def linear_scale(values: Sequence[float], start: float, end: float, pad: float = 0.04) -> Scale:
    """A linear scale with a little room on both sides."""
    low, high = min(values), max(values)
    room = (high - low) * pad if high > low else abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room, start, end)


def log_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """A logarithmic scale; zeros stand on the left, apart from it."""
    positive = [v for v in values if v > 0] or [1.0]
    low, high = min(positive), max(positive)
    room = (high / low) ** 0.05 if high > low else 2.0
    zero = start + 14 if min(values) <= 0 else None
    return Scale(low / room, high * room, start + (64 if zero else 0), end, log=True, zero=zero)


@dataclass(frozen=True)
class Label:
    """A label with its place; ``anchor`` is start or end, ``far`` asks for a leader line."""

    x: float
    y: float
    anchor: str
    far: bool


def place_labels(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    area: Box,
    obstacles: Sequence[Box] = (),
) -> list[Label]:
    """Find a place beside each point so that labels cover neither marks nor each other.

    Greedy, crowded points first to be served last; obstacles (interval bars) may be crossed at a
    price.
    """
    marks = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    taken: list[Box] = []
    found: dict[int, Label] = {}
    for index in sorted(range(len(points)), key=lambda i: (points[i][1], points[i][0])):
        width = len(texts[index]) * CHARACTER
        hard = [*taken, *marks]
        label, box = _best_place(points[index], width, area, hard, obstacles)
        taken.append(box)
        found[index] = label
    return [found[index] for index in range(len(points))]


def _best_place(
    point: tuple[float, float],
    width: float,
    area: Box,
    hard: Sequence[Box],
    soft: Sequence[Box],
) -> tuple[Label, Box]:
    x, y = point
    best: tuple[float, Label, Box] | None = None
    for step in range(0, 40):
        for dy in {step * 6.0, -step * 6.0}:
            for side, gap in ((1, 11.0), (-1, 11.0), (1, 30.0), (-1, 30.0), (1, 60.0), (-1, 60.0)):
                near = x + side * gap
                left, right = (near, near + width) if side > 0 else (near - width, near)
                box = (left, y + dy - LINE / 2, right, y + dy + LINE / 2)
                price = abs(dy) + (gap - 11) * 0.6 + (1.5 if side < 0 else 0) + (dy > 0) * 0.1
                price += 14 * sum(_overlap(box, other) for other in soft)
                price += 4000 * sum(_overlap(box, other) for other in hard)
                price += 9000 * _outside(box, area)
                if best is None or price < best[0]:
                    far = abs(dy) > 9 or gap > 11
                    anchor = "start" if side > 0 else "end"
                    best = (price, Label(near, y + dy, anchor, far), box)
        if best is not None and best[0] < step * 6:
            break
    assert best is not None
    return best[1], best[2]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _outside(box: Box, area: Box) -> bool:
    return box[0] < area[0] or box[1] < area[1] or box[2] > area[2] or box[3] > area[3]
