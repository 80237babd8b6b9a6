"""The last pass: write the kept rows, count all rows, and put the file in place if everything is valid."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from modalign.data.curation.distribution import Distributions, Tally
from modalign.data.curation.inputs import Row
from modalign.data.curation.output import line_of
from modalign.data.curation.pipeline import Pipeline
from modalign.data.curation.store import BROKEN
from modalign.errors import DataError
from modalign.files import replacing

SHOWN_TEXT = 160  # characters of an example


@dataclass(frozen=True)
class Written:
    """The output and counts of the last pass.

    Attributes:
        rows: kept rows.
        sha256: of the output.
        selection: sha256 over which rows were kept, independent of how they were written.
        distributions: before and after.
        texts: beginnings of the rows that the card shows as examples, by position.
    """

    rows: int
    sha256: str
    selection: str
    distributions: Distributions
    texts: dict[int, str]


def write_kept(pipeline: Pipeline, check: Callable[[Written], None]) -> Written:
    """Write the rows that no operator dropped.

    Args:
        pipeline: after its passes.
        check: called before the file is put in place; if it raises, the file is not.

    Raises:
        DataError: no row is left, an input changed meanwhile, or a row cannot be written.
    """
    request = pipeline.request
    tally, shown = Tally(), _shown(pipeline)
    sizes = any(operator.needs == "picture" for operator in request.operators)
    sha256, selection, texts, kept = hashlib.sha256(), hashlib.sha256(), {}, 0
    with replacing(request.out) as file:
        for row, keep in _rows(pipeline):
            tally.add(row, pipeline.media.sizes(row) if sizes else (), kept=keep)
            if row.position in shown:
                texts[row.position] = row.text[:SHOWN_TEXT]
            if keep:
                line = line_of(row, request.out)
                file.write(line)
                sha256.update(line)
                selection.update(b"%d\n" % row.position)
                kept += 1
        pipeline.check_unchanged()
        if not kept:
            raise DataError(f"no row of {pipeline.rows} is left: {_who_dropped(pipeline)}")
        digests = (sha256.hexdigest(), selection.hexdigest())
        written = Written(kept, *digests, tally.distributions(), texts)
        check(written)
    return written


def _rows(pipeline: Pipeline) -> Iterator[tuple[Row, bool]]:
    done, total = 0, pipeline.rows
    for batch in pipeline.batches(all_rows=True):
        gone = pipeline.store.dropped_between(batch.first, batch.last)
        for row in batch.rows:
            if gone.get(row.position) != BROKEN:
                yield row, row.position not in gone
        done += len(batch.rows) + len(batch.broken)
        pipeline.progress("write", done, total)


def _shown(pipeline: Pipeline) -> set[int]:
    operators = range(BROKEN, len(pipeline.request.operators))
    count = pipeline.request.examples
    return {p for op in operators for p, _ in pipeline.store.first_dropped(op, count)}


def _who_dropped(pipeline: Pipeline) -> str:
    counts = [
        f"{operator.name} dropped {pipeline.store.count_dropped(index)}"
        for index, operator in enumerate(pipeline.request.operators)
    ]
    return ", ".join(counts)
