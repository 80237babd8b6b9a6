"""``modalign prune``: cut a saved model, train it again, and judge it beside its parent and chance."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from modalign.compression.pruning.as_patches import (
    ENDING,
    recovery_file,
    save_recovery,
)
from modalign.compression.pruning.assemble import assemble
from modalign.compression.pruning.checks import check_clean
from modalign.compression.pruning.config import PruneConfig
from modalign.compression.pruning.cutting import CUT, cut
from modalign.compression.pruning.job import PARENT, PRUNED, RANDOM, RECOVERED, SCRATCH, Job
from modalign.compression.pruning.recovery import (
    Recovered,
    Scores,
    chosen_mode,
)
from modalign.compression.pruning.report import report_of
from modalign.compression.pruning.results import Cutting, Pruning
from modalign.compression.pruning.speed import Timing, measure
from modalign.compression.pruning.targets import check_target
from modalign.compression.pruning.texts import read_texts
from modalign.compression.pruning.workshop import (
    Workshop,
    open_workshop,
    requested,
)
from modalign.configuration import read_yaml
from modalign.devices import device_named
from modalign.errors import UsageError
from modalign.files import (
    bytes_in,
    check_free,
    check_room,
    clear_beside,
    new_folder,
    write_atomically,
)
from modalign.models.local import model_folder
from modalign.models.open import open_model
from modalign.models.projections import language_part
from modalign.models.quiet import quietly
from modalign.models.saved import open_composed
from modalign.progress import Progress
from modalign.runs import RECORD, read_result, run_folder
from modalign.training.budget import Budget
from modalign.training.doctor.checks_saving import size_of
from modalign.trust import trusted

Say = Callable[[str], None]
REPLACES = "overwrite"  # in the run's record


def _quiet(name: str, done: int, total: int) -> None:
    pass


@quietly()
def prune(
    config: PruneConfig,
    out: Path,
    *,
    patch: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = _quiet,
    said: Say = lambda message: None,
) -> Pruning:
    """Prune a model, recover it, and write it as a folder with its report.

    Work in progress lies in a folder beside it, ``NAME.run``, which ``resume`` continues.

    Args:
        config: what to prune, and how.
        out: the pruned model's folder.
        patch: also write it as a structure patch to this file, and its recovery beside it.
        resume: go on with an interrupted run.
        overwrite: replace a model folder that is there.
        progress: told about every step.
        said: called with notes as they are known.

    Raises:
        UsageError: an option is wrong, the target is out of reach, or the model cannot be pruned.
        DataError: the data or the weights are unusable.
        ModalignError: the folder does not compute what it must.
    """
    began = time.monotonic()
    values = {**config.model_dump(mode="json"), "patch": patch and str(patch)}
    if resume and (done := read_result(out / "report.json", Pruning)) and done.options == values:
        shutil.rmtree(_work(out), ignore_errors=True)
        clear_beside(out)
        return done
    work = _work(out)
    replaces = overwrite or (resume and _replaces(work))
    _check_places(config, out, patch, resume, replaces)
    config = config.model_copy(update={"model": str(model_folder(config.model))})
    Budget.parse(config.recover_budget)
    requested(config)
    recorded = {**values, REPLACES: replaces}
    with run_folder(work, recorded, resume=resume, overwrite=overwrite, free=(REPLACES,)) as folder:
        job, workshop = _prepare(config, work, progress)
        _check_room(job, workshop, out)
        cutting = read_result(work / CUT, Cutting)
        if cutting is None:
            workshop = workshop or open_workshop(config, progress)
            cutting = cut(job, workshop, patch, folder.begin)
        del workshop
        for note in cutting.notes:
            said(note)
        judged, recovered = _models(job)
        final = job.folder(RECOVERED if job.mode != "none" else PRUNED)
        progress("loading in a clean process", 0, 1)
        clean = check_clean(final, job.texts.calibration)
        progress("loading in a clean process", 1, 1)
        found = assemble(
            config,
            job.texts,
            mode=job.mode,
            cutting=cutting,
            judged=judged,
            recovered=recovered,
            folders={name: job.folder(name) for name in (PARENT, PRUNED, RECOVERED)},
            timings=_timings(job, final),
            clean=clean,
            options=values,
            device=str(job.device),
            patches=_patches(job, patch),
            seconds=time.monotonic() - began,
        )
        with new_folder(out) as new:
            shutil.copytree(final, new, dirs_exist_ok=True)
            report_of(found).write(new)
    shutil.rmtree(work, ignore_errors=True)
    return found


def _work(out: Path) -> Path:
    return out.with_name(f"{out.name}.run")


def _replaces(work: Path) -> bool:
    """Whether the run that is resumed may replace the model that is there: it was started with ``--overwrite``."""
    try:
        found = read_yaml((work / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and bool(found.get(REPLACES))


def _check_places(
    config: PruneConfig, out: Path, patch: Path | None, resume: bool, overwrite: bool
) -> None:
    source, place = Path(config.model).resolve(), out.resolve()
    if source in (place, *place.parents):
        raise UsageError(f"{out} is the model's folder or inside it: choose another one")
    if place in source.parents:
        raise UsageError(f"{out} contains the model's folder: choose another one")
    check_free(out, overwrite=overwrite, folders=True)
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise UsageError(f"{out} holds something that is not a model: choose another folder")
    if patch is None:
        return
    if patch.suffix != ENDING:
        raise UsageError(f"--patch {patch}: a patch file ends in {ENDING}")
    again = overwrite or (resume and (_work(out) / CUT).exists())
    check_free(patch, recovery_file(patch), overwrite=again)


def _check_room(job: Job, workshop: Workshop | None, out: Path) -> None:
    """See that the disk takes the pruned models: the result, its copy, those by chance, the recovered one."""
    if workshop is None:  # they are there
        return
    count = 2 + len(job.seeds) + (job.mode != "none")
    share = job.config.keep or 1.0
    needed = int(share * count * size_of(workshop.opened.model)) - bytes_in(job.work)
    check_room(out, needed, f"{count} pruned models take")


def _prepare(config: PruneConfig, work: Path, progress: Progress) -> tuple[Job, Workshop | None]:
    """Open the data, and the workshop where it is still needed."""
    device = device_named(config.training.device)
    workshop = None
    if (work / CUT).exists():
        opened = open_composed(config.model)
        texts = read_texts(config, opened, progress)
    else:
        workshop = open_workshop(config, progress)
        check_target(workshop)
        opened, texts = workshop.opened, workshop.texts
    size = sum(parameter.numel() for parameter in opened.model.parameters())
    return Job(config, work, chosen_mode(config, size), texts, device, progress), workshop


# ---------------------------------------------------------------------- recovering and judging


def _models(job: Job) -> tuple[dict[str, list[Scores]], dict[str, list[Recovered]]]:
    """Judge all models as they are, and recovered; scores and recoveries by row."""
    randoms = [f"{RANDOM}-{seed}" for seed in job.seeds]
    judged = {
        PARENT: [job.judged(PARENT)],
        PRUNED: [job.judged(PRUNED)],
        RANDOM: [job.judged(name) for name in randoms],
    }
    if job.mode == "none":
        return judged, {}
    job.recovery(PRUNED, job.folder(PRUNED), job.config.seed).tuning().check()
    recovered: dict[str, list[Recovered]] = {}
    for seed in job.seeds:
        models = {
            RECOVERED: PRUNED,
            f"{PARENT} {RECOVERED}": PARENT,
            f"{RANDOM} {RECOVERED}": f"{RANDOM}-{seed}",
        }
        if job.config.scratch:
            models[SCRATCH] = PRUNED
        for row, name in models.items():
            place = job.work / "training" / row.replace(" ", "-") / f"seed-{seed}"
            keep = row == RECOVERED and seed == job.config.seed
            recovery = job.recovery(row, job.folder(name), seed, scratch=row == SCRATCH)
            done = recovery.run(
                place,
                job.device,
                into=job.folder(RECOVERED) if keep else None,
                progress=job.progress,
            )
            recovered.setdefault(row, []).append(done)
    return judged, recovered


def _timings(job: Job, final: Path) -> dict[str, list[Timing]]:
    """Time the parent and the result, as they are stored."""
    if not job.config.rounds or job.config.part == "vision":
        return {}
    with trusted():
        models = {
            name: language_part(open_model(folder, device=str(job.device))[0])[0]
            for name, folder in ((PARENT, job.folder(PARENT)), (final.name, final))
        }
    return measure(models, rounds=job.config.rounds, progress=job.progress)


def _patches(job: Job, patch: Path | None) -> list[str]:
    """Put the patches in their places."""
    if patch is None:
        return []
    structure = job.work / f"structure{ENDING}"
    written = [str(patch)]
    patch.parent.mkdir(parents=True, exist_ok=True)
    for path in (patch, recovery_file(patch)):
        clear_beside(path)
    if job.mode != "none":
        target = recovery_file(patch)
        save_recovery(structure, job.folder(PRUNED), job.folder(RECOVERED), target, job.progress)
        written.append(str(target))
    write_atomically(patch, structure.read_bytes())
    return written
