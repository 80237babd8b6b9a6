"""Check the files, the split, the chat template and the supervised tokens."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from modalign.chat_templates import has_marks
from modalign.data.readers.columns import unread
from modalign.data.records import Record
from modalign.data.splits import leakage, split_validation
from modalign.data.supervision import Sample, tokenise_all
from modalign.data.validation import BrokenData, parse_share
from modalign.errors import ModalignError
from modalign.models.compose import DEFAULT_CHAT_TEMPLATE
from modalign.progress import Progress
from modalign.training.doctor.checks_model import no_media
from modalign.training.doctor.diagnosis import Diagnosis, Segment
from modalign.training.sources import DataFiles
from modalign.training.splits import FEW_RECORDS, Splits, checked_records, few_to_choose_by

T = TypeVar("T")
_ANY_SHARE = 1 - 1e-9  # continue with the remaining rows, to find more than one problem


def attempt(found: Diagnosis, section: str, name: str, make: Callable[[], T]) -> T | None:
    """Return the result of ``make``; if it raises, record the error and return None."""
    try:
        return make()
    except ModalignError as error:
        found.fail(section, name, error)
        return None


def examine_data(
    found: Diagnosis,
    data: DataFiles,
    tokenizer: Any,
    progress: Progress | None,
    modalities: Sequence[str] = ("image",),
) -> Splits | None:
    """Check files, split and tokens; None if the rest cannot be checked."""
    files = [
        _examine_file(found, name, path, data, progress, modalities)
        for name, path in (("train", data.train), ("val", data.val), ("eval", data.eval))
    ]
    if any(records is None for records in files):
        return None
    train, val, evaluation = (records or [] for records in files)
    if data.val is None:
        split = attempt(found, "data", "split", partial(split_validation, train))
        if split is None:
            return None
        train, val = split
    source = "given" if data.val else "a tenth of the training data, no medium on both sides"
    counts = f"{len(train)} to train on, {len(val)} for validation ({source})"
    found.add("data", "split", f"{counts}, {len(evaluation)} for evaluation")
    if few := few_to_choose_by(len(val)):
        more = "give more" if data.val else "give some (--val), or more training data"
        found.add("data", "validation", few, f"{more}; {FEW_RECORDS} or better a few hundred")
    _examine_leaks(found, train, val, evaluation)
    if tokenizer is None:
        return None
    sets = [
        attempt(found, "text", f"tokens of {name}", partial(tokenise_all, rows, tokenizer))
        for name, rows in (("train", train), ("val", val), ("eval", evaluation))
    ]
    if any(one is None for one in sets):
        return None
    return Splits(sets[0] or [], sets[1] or [], sets[2] or [], source, 0, [])


def _examine_file(
    found: Diagnosis,
    name: str,
    path: str | None,
    data: DataFiles,
    progress: Progress | None,
    modalities: Sequence[str],
) -> list[Record] | None:
    """Return a file's usable records (empty without a path); None if the rest cannot be checked."""
    if path is None:
        return []
    try:
        records, report = checked_records(data, name, path, _ANY_SHARE, progress, modalities)
        allowed = parse_share(data.skip_broken)
    except ModalignError as error:
        found.fail("data", f"{name} file", error)
        return None
    media = len({medium for record in records for medium in record.media()})
    detail = f"{path}: {report.kept} of {report.total} rows usable, {media} media opened"
    if report.exceeds(allowed):
        found.fail("data", f"{name} file", BrokenData(report, allowed))
    elif report.dropped:
        shown = ", ".join(str(problem.source) for problem in report.problems[:5])
        more = ", ..." if len(report.problems) > 5 else ""
        found.add("data", f"{name} file", detail, f"check the dropped rows: {shown}{more}")
    else:
        found.add("data", f"{name} file", detail)
    for text in unread(records):
        found.add(
            "data", f"{name} columns", text, "rename it, or name it with --columns OURS=YOURS"
        )
    return records


def _examine_leaks(
    found: Diagnosis, train: list[Record], val: list[Record], evaluation: list[Record]
) -> None:
    for name, other in (("validation", val), ("evaluation", evaluation)):
        leaks = leakage(train, other) if other else []
        if leaks:
            detail = f"{_media(leaks)} in the training and in the {name} data"
            places = f"{leaks[0].train} and {leaks[0].evaluation}"
            found.add("data", f"{name} leakage", detail, f"remove them from one side: {places}")
        elif other:
            found.add("data", f"{name} leakage", f"no medium is also in the {name} data")


def _media(leaks: Sequence[object]) -> str:
    return "1 medium is" if len(leaks) == 1 else f"{len(leaks)} media are"


def examine_text(found: Diagnosis, splits: Splits, tokenizer: Any) -> None:
    """Check the chat template, the supervision, and one sample as the model sees it."""
    template = tokenizer.chat_template or ""
    marks = has_marks(tokenizer)
    how = "by its generation marks" if marks else "by prefix difference (it has no marks)"
    if template.endswith(DEFAULT_CHAT_TEMPLATE):
        advice = "it is saved with the model; set the tokenizer's own before, if it has one"
        found.add("text", "chat template", "the tokenizer has none: a default is used", advice)
    else:
        found.add("text", "chat template", f"the tokenizer's own; answers are found {how}")
    counts = sorted(int(sample.supervised.sum()) for sample in splits.train)
    detail = (
        f"{counts[0]} / {statistics.median(counts):g} / {counts[-1]} per record "
        "(smallest, median, largest)"
    )
    found.add("text", "supervised tokens", detail)
    for text in no_media(splits.train):
        found.add("text", "media", text, "check the columns of the training file that name media")
    sample = next((sample for sample in splits.train if sample.media), splits.train[0])
    found.sample_source = str(sample.record.source)
    found.sample = segments(sample, tokenizer)


def segments(sample: Sample, tokenizer: Any) -> list[Segment]:
    """Return a decoded sample as supervised and unsupervised segments."""
    flags = sample.supervised.tolist()
    bounds = [0, *(i for i in range(1, len(flags)) if flags[i] != flags[i - 1]), len(flags)]
    return [
        Segment(
            text=tokenizer.decode(
                sample.ids[start:stop].tolist(), clean_up_tokenization_spaces=False
            ),
            supervised=flags[start],
        )
        for start, stop in itertools.pairwise(bounds)
    ]
