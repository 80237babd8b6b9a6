"""Pass rows through operators, with as few passes over the inputs as their order allows.

Operators that decide row by row share a pass; one that must see all rows first ends it. Every batch is one
transaction of the working file, which stays beside the output until that is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from modalign.data.curation.config import Request, described
from modalign.data.curation.inputs import Batch, Input, Row, batches
from modalign.data.curation.media import MediaLibrary
from modalign.data.curation.operators import Judge, Operator, Workplace
from modalign.data.curation.store import BROKEN, Drop, Store, place_of, remove_store
from modalign.data.readers.result import Kind, Problem
from modalign.data.records import Source
from modalign.data.validation import BrokenData, ValidationReport, parse_share
from modalign.errors import DataError, UsageError
from modalign.files import clear_beside
from modalign.progress import Progress

FORMAT = 1


class Pipeline:
    """One curation: the request, its inputs and the working file.

    Raises:
        UsageError: the output is also an input, or an interrupted run had other settings or inputs.
    """

    def __init__(self, request: Request, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.finished = False  # the working file is no longer needed
        self.allowed = parse_share(request.skip_broken)
        self.inputs = [Input(path, index) for index, path in enumerate(request.inputs)]
        self._check_paths()
        self._stamps = {item.path: item.stamp() for item in self.inputs}
        for done, item in enumerate(self.inputs):
            progress("hash the inputs", done, len(self.inputs))
            _ = item.fingerprint
        progress("hash the inputs", len(self.inputs), len(self.inputs))
        self.references = [dict(operator.references()) for operator in request.operators]
        self.store = self._open_store()
        hashing = any(operator.hashes_images for operator in request.operators)
        self.media = MediaLibrary(self.store, hashing=hashing)

    def run(self) -> None:
        """Run all passes; dropped rows are recorded in the working file.

        Raises:
            DataError: more rows are broken than allowed, or a file cannot be read at all.
        """
        for number, segment in enumerate(segments(self.request.operators)):
            if self.store.get("segment", 0) == number:
                self._pass(number, segment)
            self._check_broken()

    def close(self) -> None:
        """Close the working file; delete it if the work is finished."""
        self.store.close()
        if self.finished:
            remove_store(self.store.path)

    @property
    def rows(self) -> int:
        """The number of rows read, including broken ones."""
        return sum(map(self.rows_of, self.inputs))

    def rows_of(self, item: Input) -> int:
        """Return the number of rows read from one input."""
        return int(self.store.get(f"rows of {item.index}", 0))

    def name_of(self, position: int) -> str:
        """Format a position as file and row."""
        return str(self.source_of(position))

    def source_of(self, position: int) -> Source:
        """Return where a row was read."""
        file, row = place_of(position)
        return Source(self.inputs[file].path, row)

    # --- before the first pass ------------------------------------------------------------------

    def _check_paths(self) -> None:
        out = self.request.out.resolve()
        for item in self.inputs:
            if Path(item.path).resolve() == out:
                raise UsageError(f"{item.path}: is both input and output: write to another file")

    def _open_store(self) -> Store:
        self.request.out.parent.mkdir(parents=True, exist_ok=True)
        out = self.request.out
        path = out.with_name(f".{out.name}.curation")
        clear_beside(out)
        if not self.request.resume:
            remove_store(path)
        store = Store(path)
        identity = self._identity()
        kept = store.get("identity")
        if kept is None:
            store.put("identity", identity)
        elif kept != identity:
            store.close()
            differing = ", ".join(name for name in identity if identity[name] != kept.get(name))
            raise UsageError(
                f"{self.request.out}: the interrupted run had other {differing}: run it unchanged, "
                "or start again without resuming"
            )
        return store

    def _identity(self) -> dict[str, Any]:
        """What a resuming run must have in common with the interrupted one."""
        request = self.request
        identity = {
            "format": FORMAT,
            "inputs": [[item.path, item.fingerprint] for item in self.inputs],
            "operators": described(request.operators),
            "files that operators read": {
                path: sha256 for found in self.references for path, sha256 in found.items()
            },
            "media root": str(request.media_root) if request.media_root else None,
            "modalities": list(request.modalities),
            "columns": dict(request.columns),
        }
        return cast("dict[str, Any]", json.loads(json.dumps(identity)))

    # --- passes ---------------------------------------------------------------------------------

    def _pass(self, number: int, segment: Sequence[tuple[int, Operator]]) -> None:
        judges = [(index, op, op.start(self._place(index))) for index, op in segment]
        name = f"pass {number + 1}: {', '.join(op.name for _, op in segment)}"
        done = self.store.get("done", 0)
        total = self.rows if number else sum(item.lines() for item in self.inputs)
        for batch in self.batches(after=self.store.get("after", -1)):
            with self.store.transaction():
                done += len(batch.rows) + len(batch.broken)
                self._judge(batch, judges)
                if number == 0:
                    self._count(batch)
                self.store.put("after", batch.last)
                self.store.put("done", done)
            self.progress(name, done, max(done, total))
        with self.store.transaction():
            for index, _, judge in judges:
                self.store.drop(index, judge.finish())
            self.store.put("segment", number + 1)
            self.store.put("after", -1)
            self.store.put("done", 0)
        self.progress(name, max(done, 1), max(done, 1))

    def _place(self, index: int) -> Workplace:
        return Workplace(
            store=self.store,
            media=self.media,
            prefix=f"operator_{index}",
            name_of=self.name_of,
            modalities=self.request.modalities,
            progress=self.progress,
        )

    def _judge(self, batch: Batch, judges: Sequence[tuple[int, Operator, Judge]]) -> None:
        self._broken((broken.position, broken.problem) for broken in batch.broken)
        rows = batch.rows
        for index, operator, judge in judges:
            if operator.needs is not None:
                problems = self.media.load(rows, operator.needs)
                self._broken(problems)
                rows = _without(rows, {position for position, _ in problems})
            drops = list(judge.judge(rows))
            self.store.drop(index, drops)
            rows = _without(rows, {drop.position for drop in drops})

    def _broken(self, problems: Iterable[tuple[int, Problem]]) -> None:
        for position, problem in problems:
            self.store.drop(BROKEN, [Drop(position, problem.message)], problem.kind)

    def _count(self, batch: Batch) -> None:
        fact = f"rows of {place_of(batch.first)[0]}"
        self.store.put(fact, self.store.get(fact, 0) + len(batch.rows) + len(batch.broken))

    def batches(self, after: int = -1, *, all_rows: bool = False) -> Iterator[Batch]:
        """Yield the rows after a position that are not dropped, or all readable ones."""
        for item in self.inputs:
            if item.index < place_of(max(after, 0))[0]:
                continue
            yield from batches(
                item,
                media_root=self.request.media_root,
                modalities=self.request.modalities,
                columns=self.request.columns,
                dropped=(lambda first, last: ()) if all_rows else self.store.dropped_between,
                after=after,
            )

    def check_unchanged(self) -> None:
        """Check that the inputs are unchanged.

        Raises:
            DataError: one was modified since the start.
        """
        for item in self.inputs:
            if item.stamp() != self._stamps[item.path]:
                raise DataError(f"{item.path}: changed while it was read: curate it again")

    def _check_broken(self) -> None:
        broken = self.store.count_dropped(BROKEN)
        if self.rows == 0:
            raise DataError(f"{', '.join(self.request.inputs)}: no rows")
        if broken <= self.allowed * self.rows + 1e-9 and broken < self.rows:
            return
        raise BrokenData(self.broken_report(), self.allowed)

    def broken_report(self) -> ValidationReport:
        """Return the rows that could not be read."""
        found = self.store.execute(
            "SELECT position, kind, reason FROM dropped WHERE operator = ? ORDER BY position",
            (BROKEN,),
        )
        problems = [
            Problem(self.source_of(position), cast("Kind", kind), reason)
            for position, kind, reason in found
        ]
        kinds: dict[str, int] = {}
        for problem in problems:
            kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
        total = self.rows
        return ValidationReport(total, total - len(problems), len(problems), kinds, tuple(problems))


def segments(operators: Sequence[Operator]) -> list[list[tuple[int, Operator]]]:
    """Group the numbered operators by pass."""
    found: list[list[tuple[int, Operator]]] = [[]]
    for index, operator in enumerate(operators):
        found[-1].append((index, operator))
        if operator.waits:
            found.append([])
    return [segment for segment in found if segment]


def _without(rows: list[Row], positions: set[int]) -> list[Row]:
    return [row for row in rows if row.position not in positions] if positions else rows
