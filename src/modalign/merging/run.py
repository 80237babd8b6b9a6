"""``modalign merge``: align parents, merge them, check what was written, and judge it beside its parents."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modalign.files import check_room, new_folder
from modalign.merging.alignment import Alignment
from modalign.merging.bench import Bench
from modalign.merging.checking import CleanProcess
from modalign.merging.coefficients import Coefficients
from modalign.merging.comparing import compare
from modalign.merging.config import MergeConfig
from modalign.merging.planning import Merge
from modalign.merging.report import report_of
from modalign.merging.results import MergeResult
from modalign.merging.soup import patched_parent, write_soup
from modalign.merging.writing import Hashes, Recipe, write_merged
from modalign.models.quiet import quietly
from modalign.patches.model_folders import apply_to_folder
from modalign.patches.storage import load_patch
from modalign.progress import Progress
from modalign.runs import command_line, run_folder
from modalign.version import __version__

Say = Callable[[str], None]
MODEL = "model"
PATCH = "soup.safetensors"


@quietly()
def merge_models(
    config: MergeConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda name, done, total: None,
    said: Say = lambda message: None,
) -> MergeResult:
    """Merge models into ``out/model`` (or ``out/soup.safetensors``) and report beside it.

    Args:
        config: what to merge, and how.
        out: folder of the run.
        resume: go on with an interrupted run; finished work is kept.
        overwrite: delete an earlier run.
        progress: told after each tensor, step and model.
        said: called with warnings and notes as they are known.

    Raises:
        UsageError: parents that do not fit each other, or an option that is wrong.
        DataError: weights or data that cannot be used; the tensor is named.
        ModalignError: what was written is not the model that it should be; it is deleted.
    """
    began = time.monotonic()
    merge = Merge(config)
    values = config.model_dump(mode="json") | {"files": _fingerprints(merge.alignment)}
    with run_folder(out, values, resume=resume, overwrite=overwrite) as folder:
        check_room(out, merge.plan().bytes, "the merged model takes")
        bench = Bench(merge, out, progress)
        for message in (*merge.alignment.notes, *bench.warnings):
            said(message)
        folder.begin()
        chosen, recipe = bench.choose()
        hashes = Hashes()
        started = time.monotonic()
        if config.form == "patch":
            saved = out / PATCH
            tensors = _write_patch(merge, recipe, saved, hashes, progress)
        else:
            saved = out / MODEL
            tensors = _write_folder(merge, recipe, saved, hashes, progress)
        merging = time.monotonic() - started
        models = bench.judge_all(chosen, recipe)
        rows, differences = compare(models, bench.evaluation, chosen) if models else ([], [])
        found = MergeResult(
            plan=merge.plan(hashes, recipe),
            chosen=chosen,
            model=str(saved),
            tensors=tensors,
            coefficients=_coefficients(recipe.coefficients),
            domains={name: len(domain.samples) for name, domain in bench.evaluation.items()},
            rows=rows,
            differences=differences,
            warnings=bench.warnings,
            notes=bench.notes,
            merging_seconds=merging,
            seconds=time.monotonic() - began,
            command=command_line(),
            version=__version__,
        )
        report_of(found).write(out)
    return found


def _write_folder(
    merge: Merge, recipe: Recipe, target: Path, hashes: Hashes, progress: Progress
) -> int:
    with CleanProcess() as process, new_folder(target) as new:
        write_merged(merge.alignment, recipe, new, hashes=hashes, progress=progress)
        progress("loading in a clean process", 0, 1)
        tensors = process.check(new, merge.alignment.like)
        progress("loading in a clean process", 1, 1)
    return tensors


def _write_patch(
    merge: Merge, recipe: Recipe, target: Path, hashes: Hashes, progress: Progress
) -> int:
    """Write the soup, and see that its model with the patch in its weights loads."""
    with CleanProcess() as process, new_folder(target.with_suffix("")) as work:
        made = work / target.name
        tensors = write_soup(merge.alignment, recipe, made, hashes=hashes, progress=progress)
        model = patched_parent(merge.alignment)
        progress("loading in a clean process", 0, 1)
        apply_to_folder(model.folder, [load_patch(made)], work / MODEL)
        process.check(work / MODEL, model)
        progress("loading in a clean process", 1, 1)
        made.replace(target)
        shutil.rmtree(work / MODEL)
    target.with_suffix("").rmdir()
    return tensors


def _coefficients(found: Coefficients) -> dict[str, dict[str, float]]:
    return {
        pattern: dict(zip(found.parents, weights, strict=True)) for pattern, weights in found.rules
    }


def _fingerprints(alignment: Alignment) -> dict[str, Any]:
    """Sizes and times of the parents' files: a run is not resumed with others."""
    return {
        name: {
            file: [(stat := (each.folder / file).stat()).st_size, stat.st_mtime_ns]
            for file in each.weights.files
        }
        for name, each in alignment.everyone.items()
    }
