"""The cut itself: candidates are planned, tried where asked, and written beside models pruned by chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from modalign.compression.pruning.as_patches import ENDING, structure_of
from modalign.compression.pruning.assemble import means
from modalign.compression.pruning.job import JUDGED, PARENT, PRUNED, RANDOM, Job
from modalign.compression.pruning.recovery import Scores, scores_of
from modalign.compression.pruning.results import Cutting, Tried
from modalign.compression.pruning.speed import measure
from modalign.compression.pruning.targets import ROUNDS, random_model, size_for
from modalign.compression.pruning.workshop import (
    AUTO,
    DEFAULT_SCORE,
    Candidate,
    Request,
    Workshop,
    requested,
)
from modalign.errors import UsageError
from modalign.files import new_folder, write_atomically
from modalign.models.saved import open_composed
from modalign.patches.storage import save_patch
from modalign.runs import read_result
from modalign.trust import trusted

SHORT = 0.25  # of the budget: the recovery by which candidates are judged
CUT = "cut.json"


def cut(job: Job, workshop: Workshop, patch: Path | None, begin: Callable[[], None]) -> Cutting:
    """Write the pruned model, those pruned by chance, and the structure; recorded at the end."""
    config = job.config
    requests = requested(config)
    if config.form == AUTO and job.mode == "none":
        raise UsageError(
            "--form auto judges candidates after a short recovery: leave --recover none out"
        )
    compensate = config.compensate
    if compensate is None:  # after recovery there is no difference: docs/prune.md
        wanted = job.mode == "none" and patch is None and requests[0].score == DEFAULT_SCORE
        compensate = None if wanted else False
    if config.form != AUTO:
        # What the size and the form forbid is refused before any pass over the samples.
        if config.latency is None:
            by_chance = replace(requests[0], score="random")
            workshop.candidate(
                by_chance, size_for(workshop, by_chance, config.seed), seed=config.seed
            )
        chosen = _candidate(workshop, requests[0], compensate)
        tried: list[Tried] = []
        begin()
    else:
        begin()
        chosen, tried = _best(job, workshop, requests, compensate)
    difference = workshop.write(chosen, job.folder(PRUNED))
    if patch is not None:
        save_patch(structure_of(workshop, chosen, patch.stem), job.work / f"structure{ENDING}")
    size = chosen.plan.size(workshop.stack) + chosen.added
    for seed in job.seeds:
        request = Request(RANDOM, chosen.plan.form, RANDOM, chosen.request.kinds)
        other = workshop.candidate(request, size, seed=seed, compensate=bool(chosen.means))
        workshop.write(other, job.folder(f"{RANDOM}-{seed}"))
    whole = workshop.parameters
    found = Cutting(
        form=chosen.plan.form,
        score=chosen.plan.score,
        removed=chosen.plan.words(workshop.stack),
        saved_as=chosen.shape.carrier,
        parameters=(whole, whole - workshop.stack.size + size),
        share=size / workshop.stack.size,
        silenced_difference=difference,
        compensated=bool(chosen.means),
        candidates=tried,
        notes=list(dict.fromkeys(workshop.notes)),
    )
    write_atomically(job.work / CUT, found.model_dump_json(indent=1))
    return found


def _candidate(workshop: Workshop, request: Request, compensate: bool | None) -> Candidate:
    seed = workshop.config.seed
    size = size_for(workshop, request, seed)
    return workshop.candidate(request, size, seed=seed, compensate=compensate)


def _best(
    job: Job, workshop: Workshop, requests: Sequence[Request], compensate: bool | None
) -> tuple[Candidate, list[Tried]]:
    """Try candidates: each is recovered shortly and judged on validation data."""
    made: dict[str, Candidate] = {}
    tried: list[Tried] = []
    for request in requests:
        entry = Tried(name=request.name, form=request.form, score=request.score)
        tried.append(entry)
        try:
            candidate = _candidate(workshop, request, compensate)
        except UsageError as error:
            entry.refused = str(error)
            continue
        words = candidate.plan.words(workshop.stack)
        if words in (each.removed for each in tried) and candidate.plan.form == "depth":
            entry.refused = f"the same layers as another candidate: {words}"
            continue
        made[request.name] = candidate
        gone = workshop.stack.size - candidate.plan.size(workshop.stack)
        entry.removed, entry.saved_as = words, candidate.shape.carrier
        entry.parameters = workshop.parameters - gone + candidate.added
        _try(job, workshop, candidate, entry)
    if not made:
        raise UsageError("; ".join(f"{each.name}: {each.refused}" for each in tried))
    if job.config.rounds:
        _time(job, workshop, made, tried)
    losses = {each.name: each.after.value for each in tried if each.after is not None}
    best = min(losses, key=losses.__getitem__)
    for each in tried:
        each.chosen = each.name == best
    return made[best], tried


def _try(job: Job, workshop: Workshop, candidate: Candidate, entry: Tried) -> None:
    folder = job.folder(f"try-{entry.name}")
    if not folder.is_dir():
        with new_folder(folder) as new:
            workshop.write(candidate, new)
    texts = replace(job.texts, held_out=job.texts.validation, task=[])
    recovery = job.recovery(entry.name, folder, job.config.seed)
    recovery.budget = recovery.budget.share(SHORT)
    file = job.work / JUDGED / f"try-{entry.name}.json"
    before = read_result(file, Scores)
    if before is None:
        with trusted():
            opened = open_composed(folder)
        opened.model.float()
        before = scores_of(opened, texts, job.device)
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, before.model_dump_json())
    work = job.work / "training" / f"try-{entry.name}"
    after = recovery.run(work, job.device, progress=job.progress, texts=texts)
    losses = {"before": [before.held_out], "after": [after.scores.held_out]}
    found = means(losses, lambda one: one.nll, texts.validation, ("before",))
    entry.before, entry.after = found["before"], found["after"]


def _time(job: Job, workshop: Workshop, made: dict[str, Candidate], tried: Sequence[Tried]) -> None:
    parent = workshop.opened.model.language_model
    models = {name: random_model(candidate, parent) for name, candidate in made.items()}
    found = measure({PARENT: parent, **models}, rounds=ROUNDS, batches=(1,), progress=job.progress)
    for entry in tried:
        if entry.name in found:
            entry.next_ratio = found[entry.name][0].next_ratio
