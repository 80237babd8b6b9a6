"""Plan a comparison's cells: every method and mode gets the same draws of edits at each size."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modalign.editing.compare.results import Mode
from modalign.editing.edits import Edit
from modalign.errors import UsageError

SIZES = (1, 10, 100, 1000)
STEPS = 10  # of a sequential cell, where no block is given
# ROME writes one edit after another in either mode, so its two modes are the same computation.
ONE_AFTER_ANOTHER = frozenset({"rome"})


@dataclass(frozen=True)
class Planned:
    """One cell.

    Attributes:
        method, mode, size, draw: which cell it is.
        edits: positions in the file's list.
        block: edits per step; ``size`` in batch mode.
    """

    method: str
    mode: Mode
    size: int
    draw: int
    edits: tuple[int, ...]
    block: int

    @property
    def key(self) -> str:
        """Its name on disk."""
        return f"{self.method}-{self.mode}-{self.size}-{self.draw}"

    @property
    def steps(self) -> list[tuple[int, ...]]:
        """Return the edits of each step."""
        return [self.edits[start : start + self.block] for start in range(0, self.size, self.block)]


@dataclass(frozen=True)
class Plan:
    """All cells.

    Attributes:
        sizes: numbers of edits, ascending.
        modes: as asked for.
        methods: as asked for.
        draws: size -> disjoint draws of positions; a smaller size's edits are a subset of a larger one's.
        blocks: size -> edits per sequential step.
        cells: each computation once, small sizes first.
        notes: what was left out.
    """

    sizes: tuple[int, ...]
    modes: tuple[Mode, ...]
    methods: tuple[str, ...]
    draws: dict[int, list[tuple[int, ...]]]
    blocks: dict[int, int]
    cells: list[Planned]
    notes: list[str]

    def computed_as(self, method: str, mode: Mode, size: int) -> Mode:
        """Return the mode that a cell is run in; where both modes are the same, only one is run."""
        alike = method in ONE_AFTER_ANOTHER or self.blocks[size] >= size
        return "batch" if mode == "sequential" and alike else mode

    @property
    def used(self) -> list[int]:
        """Positions of all edits that any draw uses, in order."""
        return sorted({i for draws in self.draws.values() for draw in draws for i in draw})


def draws_of(size: int, count: int) -> int:
    """Return how many draws a size gets by default: 20 for 1 edit, 5 for 10, 1 for 50 and more."""
    wanted = 20 if size < 10 else 5 if size < 50 else 1
    return min(wanted, count // size)


def make_plan(
    methods: Sequence[str],
    sizes: Sequence[int],
    modes: Sequence[Mode],
    count: int,
    *,
    seed: int = 0,
    block: int | None = None,
    draws: int | None = None,
) -> Plan:
    """Plan a comparison.

    Args:
        methods: names.
        sizes: numbers of edits; those larger than ``count`` are dropped and noted.
        modes: batch, sequential or both.
        count: edits in the file.
        seed: of the draws.
        block: edits per sequential step; None for a tenth of the size.
        draws: the most draws of each size; None for :func:`draws_of`.

    Raises:
        UsageError: nothing is left to do.
    """
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < 1 or not methods or not modes:
        raise UsageError("a comparison needs methods, modes and numbers of edits of at least 1")
    fitting = tuple(size for size in wanted if size <= count)
    notes = [
        f"{size} edits left out: the file has {count} that can be used"
        for size in wanted
        if size > count
    ]
    if not fitting:
        raise UsageError(f"the file has {count} edits, fewer than {wanted[0]}: choose --sizes")
    order = list(range(count))
    random.Random(seed).shuffle(order)
    drawn = {}
    for size in fitting:
        number = draws_of(size, count) if draws is None else max(1, min(draws, count // size))
        drawn[size] = [tuple(order[i * size : (i + 1) * size]) for i in range(number)]
    blocks = {size: min(size, block or max(1, -(-size // STEPS))) for size in fitting}
    plan = Plan(fitting, tuple(modes), tuple(methods), drawn, blocks, [], notes)
    cells: dict[str, Planned] = {}
    for size in fitting:
        for number, edits in enumerate(drawn[size]):
            for mode in modes:
                for method in methods:
                    run = plan.computed_as(method, mode, size)
                    each = blocks[size] if run == "sequential" else size
                    cell = Planned(method, run, size, number, edits, each)
                    cells.setdefault(cell.key, cell)
    return replace(plan, cells=list(cells.values()), notes=notes + _same(plan))


def _same(plan: Plan) -> list[str]:
    """Say in words where the two modes are the same computation."""
    if "sequential" not in plan.modes:
        return []
    notes = []
    whole = [str(size) for size in plan.sizes if plan.blocks[size] >= size]
    if whole:
        notes.append(
            f"edits: {', '.join(whole)}: one step holds them all, so sequential is batch there"
        )
    alike = [name for name in plan.methods if name in ONE_AFTER_ANOTHER]
    if alike:
        notes.append(
            f"{', '.join(alike)} writes one edit after the other in either mode: computed once"
        )
    steps = ", ".join(
        f"{size} in {-(-size // plan.blocks[size])} steps of {plan.blocks[size]}"
        for size in plan.sizes
        if plan.blocks[size] < size
    )
    return [*notes, f"sequential: {steps}"] if steps else notes


def without_edited_neighbours(edits: Sequence[Edit]) -> tuple[list[Edit], int]:
    """Drop neighbours that ask for something another edit of the file changes; also return how many.

    The right answer to such a neighbour depends on which edits are applied, so it says nothing about
    specificity.
    """
    changed: dict[str, set[str]] = {}
    for edit in edits:
        for prompt in (edit.prompt, *edit.paraphrases):
            changed.setdefault(" ".join(prompt.split()), set()).add(edit.id)
    kept, gone = [], 0
    for edit in edits:
        clean = tuple(
            neighbour
            for neighbour in edit.neighbours
            if " ".join(neighbour.prompt.split()) not in changed
        )
        gone += len(edit.neighbours) - len(clean)
        kept.append(replace(edit, neighbours=clean))
    return kept, gone
