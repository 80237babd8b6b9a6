"""Check all data before training: every problem at once, with file and row.

A broken record is refused here, or dropped and counted up to a share that the user allows; it never
stops a run hours later.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from modalign.data.modalities import DEFAULT, check_medium, modality_names, modality_of
from modalign.data.readers.result import Kind, Problem, ReadResult
from modalign.data.records import Media, Record, Source, mark, media_columns
from modalign.data.signals import SignalError
from modalign.errors import DataError, UsageError, grouped

SHOWN_PROBLEMS = 20
CHUNK = 32

Progress = Callable[[int, int], None]
"""Called with the number of media checked so far and their total."""

Check = Callable[[Media], int | None]
"""Opens a medium (or raises SignalError); returns the size it must share with others."""


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """The rows that were checked, kept and dropped.

    Attributes:
        total: rows read.
        kept: rows that can be used.
        dropped: rows that cannot.
        kinds: rows per kind of problem (a row with two kinds counts under both).
        problems: all of them, in the order of the rows.
    """

    total: int
    kept: int
    dropped: int
    kinds: dict[str, int]
    problems: tuple[Problem, ...]

    def exceeds(self, allowed: float) -> bool:
        """Whether more than this share of rows had to be dropped."""
        return self.dropped > allowed * self.total + 1e-9

    @property
    def share(self) -> float:
        """Share of the rows that cannot be used."""
        return self.dropped / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "total": self.total,
            "kept": self.kept,
            "dropped": self.dropped,
            "share": self.share,
            "kinds": dict(self.kinds),
            "problems": [problem.to_json() for problem in self.problems],
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=2)
        Path(path).write_text(f"{text}\n", encoding="utf-8")


class BrokenData(DataError):  # noqa: N818 (named for what the user has)
    """Rows that cannot be used: all of them, not just the first.

    Attributes:
        problems: the problems, row by row.
        report: the same with the counts.
    """

    def __init__(self, report: ValidationReport, allowed: float) -> None:
        super().__init__(_describe(report, allowed))
        self.report = report
        self.problems = list(report.problems)


class Validated(NamedTuple):
    """The usable records in their order, and the report."""

    records: list[Record]
    report: ValidationReport


def validate(
    records: ReadResult | Sequence[Record],
    *,
    modalities: Sequence[str] | None = None,
    skip_broken: float | str = 0.0,
    check: Check = check_medium,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Validated:
    """Check every row and open every medium.

    Args:
        records: the result of a reader (including its row problems), or records.
        modalities: the modalities that the model accepts (default: any).
        skip_broken: the share of rows that may be dropped: 0.01 or "1%".
        check: check for every medium (default: opening it), for example decoding it for an encoder whose
            limits come from the training data.
        workers: threads that open media (default: chosen by the machine).
        progress: called regularly with (checked, total) media.

    Returns:
        The usable records and the report.

    Raises:
        BrokenData: more rows than `skip_broken` allows are broken, or none is usable.
        UsageError: `skip_broken` is not a share.
    """
    allowed = parse_share(skip_broken)
    result = records if isinstance(records, ReadResult) else ReadResult(list(records))
    broken_media = _check_media(result.records, check, workers, progress)
    problems = list(result.problems)
    kept: list[Record] = []
    first_use: dict[str, Source] = {}
    for record in result.records:
        found = [
            *_duplicate_id(record, first_use),
            *_record_problems(record, modalities),
            *_media_problems(record, broken_media),
        ]
        problems += found
        if not found:
            kept.append(record)
    report = _report(result.total, len(kept), problems)
    if report.exceeds(allowed) or not kept:
        raise BrokenData(report, allowed)
    return Validated(kept, report)


def parse_share(value: float | str) -> float:
    """Read a share: 0.01, "0.01" or "1%".

    Raises:
        UsageError: it is not a share from 0 to below 1.
    """
    text = str(value).strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = float("nan")
    if not 0 <= share < 1:
        raise UsageError(f'{value!r} is not a share: write one like 0.01 or "1%", below 1')
    return share


# --- what can be wrong with a record ------------------------------------------------------------


def _record_problems(record: Record, modalities: Sequence[str] | None) -> Iterator[Problem]:
    yield from _answer_problems(record)
    for modality in DEFAULT:
        if any(mark(modality) in message.text for message in record.messages):
            yield Problem(
                record.source,
                "placeholder",
                f"an {mark(modality)} placeholder without an {modality}: name the {modality} or remove the "
                "placeholder",
            )
    if modalities is not None:
        yield from _foreign_media(record, modalities)


def _foreign_media(record: Record, modalities: Sequence[str]) -> Iterator[Problem]:
    """Report media that the model would never see, in the conversation or in their own column."""
    held = {medium.modality for medium in record.media()}
    columns = {name for name, value in record.extra.items() if value not in (None, "", [], {})}
    held |= {modality for modality in modality_names() if columns & set(media_columns(modality))}
    foreign = [modality for modality in modality_names() if modality in held - set(modalities)]
    if foreign:
        takes = ", ".join(modalities) or "text only"
        yield Problem(
            record.source,
            "modality",
            f"holds {', '.join(foreign)}, but the model takes {takes}: remove it, or train with an "
            f"encoder for it (--encoder {foreign[0]}=none)",
        )


def _answer_problems(record: Record) -> Iterator[Problem]:
    answers = [message for message in record.messages if message.role == "assistant"]
    if not answers:
        yield Problem(
            record.source,
            "no-supervision",
            "no assistant turn, so there is nothing to learn: add an answer",
        )
    elif record.messages[-1].role != "assistant":
        yield Problem(
            record.source,
            "no-supervision",
            f"ends with a {record.messages[-1].role} turn: add its answer or remove the turn",
        )
    elif any(not message.text.strip() for message in answers):
        yield Problem(
            record.source, "empty-answer", "the answer is empty: fill it in or remove the row"
        )


def _duplicate_id(record: Record, first_use: dict[str, Source]) -> Iterator[Problem]:
    if record.id in first_use:
        message = f"the id {record.id!r} is taken by {first_use[record.id]}: make ids unique"
        yield Problem(record.source, "duplicate-id", message)
    else:
        first_use[record.id] = record.source


# --- media --------------------------------------------------------------------------------------

Fault = tuple[Kind, str]


def _media_problems(record: Record, faults: dict[Media, Fault]) -> Iterator[Problem]:
    for media in dict.fromkeys(record.media()):
        if media in faults:
            kind, message = faults[media]
            name = "" if media.label == str(record.source) else f" {media.label}"
            yield Problem(record.source, kind, f"{media.modality}{name}: {message}")


def _check_media(
    records: Iterable[Record], look: Check, workers: int | None, progress: Progress | None
) -> dict[Media, Fault]:
    """Open each distinct medium once, in threads (decoders release the interpreter lock)."""
    media = list(dict.fromkeys(item for record in records for item in record.media()))
    chunks = [media[i : i + CHUNK] for i in range(0, len(media), CHUNK)]
    faults: dict[Media, Fault] = {}
    sizes: dict[Media, int] = {}
    done = 0
    with ThreadPoolExecutor(max_workers=workers) as pool:
        results = pool.map(lambda chunk: [_opened(item, look) for item in chunk], chunks)
        for chunk, found in zip(chunks, results, strict=True):
            for medium, result in zip(chunk, found, strict=True):
                if isinstance(result, int):
                    sizes[medium] = result
                elif result is not None:
                    faults[medium] = result
            done += len(chunk)
            if progress is not None:
                progress(done, len(media))
    return faults | dict(_misfits(sizes))


def _opened(media: Media, look: Check) -> Fault | int | None:
    """Return the fault of a medium, else the size it must share with others, if any."""
    try:
        return look(media)
    except SignalError as error:
        return error.kind, error.reason


def _misfits(sizes: dict[Media, int]) -> Iterator[tuple[Media, Fault]]:
    """Yield media whose size differs from the majority: one encoder could not read both."""
    for modality in sorted({medium.modality for medium in sizes}):
        own = {medium: size for medium, size in sizes.items() if medium.modality == modality}
        usual, count = Counter(own.values()).most_common(1)[0]
        for medium, size in own.items():
            if size != usual:
                message = f"{modality_of(modality).shared} {size}, where {count} of {len(own)} have {usual}"
                yield medium, ("broken-media", message)


# --- the report ---------------------------------------------------------------------------------


def _report(total: int, kept: int, problems: Sequence[Problem]) -> ValidationReport:
    ordered = tuple(sorted(problems, key=lambda p: (p.source.file, p.source.row)))
    rows = {(problem.kind, problem.source) for problem in ordered}
    kinds = Counter(str(kind) for kind, _ in sorted(rows, key=lambda pair: pair[0]))
    return ValidationReport(total, kept, total - kept, dict(kinds), ordered)


def listed(problems: Sequence[Problem]) -> list[str]:
    """Problems of rows as lines: those of many rows once, with an example."""
    return grouped([(str(problem.source), problem.message) for problem in problems], SHOWN_PROBLEMS)


def _describe(report: ValidationReport, allowed: float) -> str:
    if not report.total:
        return "no rows at all"
    lines = [f"{report.dropped} of {report.total} rows ({report.share:.2%}) cannot be used:"]
    lines += [f"  {line}" for line in listed(report.problems)]
    kinds = sorted(report.kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    lines.append("rows by kind: " + ", ".join(f"{kind} {count}" for kind, count in kinds))
    if report.kept:
        limit = f"at most {allowed:.2%} may be skipped" if allowed else "no row may be skipped"
        lines.append(
            f"{limit}: correct the rows, or allow a share with --skip-broken (skip_broken)"
        )
    return "\n".join(lines)
