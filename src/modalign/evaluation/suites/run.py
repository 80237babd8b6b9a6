"""``modalign eval --suite text``: a language model on local suites, against others, chance and surface rules."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modalign.chat_templates import let_through
from modalign.errors import DataError, UsageError
from modalign.evaluation.kept import Kept
from modalign.evaluation.suites.asking import Asked, Form, random_weights
from modalign.evaluation.suites.finding import check_names, find_parts
from modalign.evaluation.suites.lines import Answered, lines_of
from modalign.evaluation.suites.parts import ORDERS, Part
from modalign.evaluation.suites.results import RANDOM, Suite
from modalign.hashing import canonical
from modalign.models.asking import tokenizer_of
from modalign.models.open import open_model, takes_media
from modalign.models.quiet import quietly
from modalign.patches import patches_of, with_patches
from modalign.progress import Progress, within
from modalign.runs import RunFolder, command_line, run_folder

RANDOM_SEEDS = 3


@dataclass(frozen=True)
class SuiteOptions:
    """How a suite is asked.

    Attributes:
        suite: its name.
        parts: of it; all that the folder holds by default.
        form: prompts as they stand, or in the chat template.
        orders: in how many orders options stand.
        shots: examples before a problem; None as the part has it.
        random: how many models of random weights are asked.
        seed: of orders, examples, draws and intervals.
        limit: at most so many items of a part.
        batch_size: problems answered together.
        max_new_tokens: of a written answer.
        letters: also show TruthfulQA's options under letters, in every order.
    """

    suite: str = "text"
    parts: tuple[str, ...] = ()
    form: Form = "plain"
    orders: int = ORDERS
    shots: int | None = None
    random: int = RANDOM_SEEDS
    seed: int = 0
    limit: int | None = None
    batch_size: int = 16
    max_new_tokens: int = 256
    letters: bool = False


@quietly()
def evaluate_suite(
    folder: Path,
    data: Path,
    *,
    against: Sequence[Path] = (),
    options: SuiteOptions | None = None,
    patches: Sequence[Path] = (),
    control_tokens: Sequence[str] = (),
    device: str = "auto",
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Suite:
    """Ask a model, the models it is held against and models of random weights the items of a suite.

    Args:
        folder: the model judged; of a model with media, its language model is.
        data: folder of the suite's files.
        against: models before the tuning, or tuned otherwise.
        options: how it is asked.
        patches: on the judged model.
        control_tokens: special tokens that are such where a text holds them, too.
        device: to compute on.
        out: folder of the run, which keeps answers; None keeps nothing.
        resume, overwrite: what becomes of a run that the folder holds.
        progress: told how far each model is with each part.

    Raises:
        UsageError: an unknown name, or an output that is there.
        DataError: files that cannot be used, or no item that every model reads.
    """
    options = options or SuiteOptions()
    check_names(options.suite, options.parts)
    parts, notes = find_parts(
        data,
        options.parts,
        orders=options.orders,
        shots=options.shots,
        seed=options.seed,
        limit=options.limit,
        letters=options.letters,
    )
    names = model_names([folder, *against])
    for each in (folder, *against):
        takes_media(each)  # a folder without a model is said before any is asked
    configuration = {
        **asdict(options),
        "model": str(folder),
        "against": [str(each) for each in against],
        "patches": [str(each) for each in patches],
        "data": str(data),
        "items": _fingerprint(parts),
    }
    configuration["parts"] = list(options.parts)
    held = (
        run_folder(out, configuration, resume=resume, overwrite=overwrite)
        if out is not None
        else nullcontext()
    )
    with held as run:
        answered, patched = _all_answers(
            dict(zip(names, [folder, *against], strict=True)),
            parts,
            options,
            patches,
            control_tokens,
            device,
            run,
            notes,
            progress,
        )
    kept, left_out = _fitting(parts, answered)
    notes += [note for part in parts for note in part.notes]
    if options.random and options.random < RANDOM_SEEDS:
        notes.append(
            f"Only {options.random} random draws of weights: their spread is hardly known."
        )
    notes += [
        f"{name}: {count} of its items are left out for all rows: some model does not read so many tokens."
        for name, count in left_out.items()
        if count
    ]
    lines = lines_of(kept, names, seed=options.seed)
    if len(set(patched.tokenizers)) > 1:
        notes.append(
            "The tokenizers differ: compare bits per byte, not perplexity, which is per token."
        )
    if not against:
        notes.append(
            "Nothing was held against the model: --against BEFORE shows what tuning changed."
        )
    return Suite(
        suite=options.suite,
        model=str(folder),
        data=str(data),
        models={name: str(path) for name, path in zip(names, [folder, *against], strict=True)},
        settings={
            name: value
            for name, value in configuration.items()
            if name not in ("model", "against", "data", "patches")
        },
        patches=patched.patches,
        lines=lines,
        left_out=left_out,
        notes=notes,
        command=command_line(),
    )


def model_names(folders: Sequence[Path]) -> list[str]:
    """Name models by as much of the end of their paths as tells them apart.

    Raises:
        UsageError: one folder is given twice.
    """
    paths = [Path(folder).absolute().parts for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(
            folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1
        )
        raise UsageError(f"{twice} is given twice: a model is not held against itself")
    found = []
    for path in paths:
        others = [other for other in paths if other != path]
        size = next(
            n for n in range(1, len(path) + 1) if all(path[-n:] != other[-n:] for other in others)
        )
        found.append("/".join(path[-size:]))
    return found


def _fingerprint(parts: Sequence[Part]) -> str:
    """Hash what is asked, so that a run is not taken up with other items."""
    said = [[part.name, [asdict(item) for item in part.items]] for part in parts]
    return hashlib.sha256(canonical(said)).hexdigest()


@dataclass
class _Patched:
    patches: list[str]
    tokenizers: list[str]


def _all_answers(
    folders: Mapping[str, Path],
    parts: Sequence[Part],
    options: SuiteOptions,
    patches: Sequence[Path],
    control_tokens: Sequence[str],
    device: str,
    run: RunFolder | None,
    notes: list[str],
    progress: Progress | None,
) -> tuple[Answered, _Patched]:
    """Ask one model after the other, the judged one and its random draws first; only one is in memory."""
    from modalign.hashing import tokenizer_hash

    kept = Kept(run.path / "answers" if run is not None else None)
    answered: Answered = {part.name: {} for part in parts}
    said = _Patched([], [])
    for number, (name, folder) in enumerate(folders.items()):
        model, reader = open_model(folder, device=device)
        tokenizer: Any = tokenizer_of(reader)
        let_through(tokenizer, control_tokens)
        said.tokenizers.append(tokenizer_hash(tokenizer))
        if number == 0:
            model = with_patches(model, tokenizer, patches)
            said.patches = [
                f"{each.patch.header.name} ({each.sha256})" for each in patches_of(model)
            ]
        if run is not None and number == 0:
            run.begin()
        asked = Asked(model, reader, options.form, options.batch_size, options.max_new_tokens)
        for part in parts:
            answered[part.name][name] = [_ask(asked, part, f"{number}", name, kept, progress)]
        if number:
            continue
        for draw in range(options.random):
            with random_weights(asked, options.seed + draw) as other:
                if isinstance(other, str):
                    notes.append(
                        f"{RANDOM}: none, no model can be made of the configuration ({other})."
                    )
                    break
                for part in parts:
                    row = answered[part.name].setdefault(RANDOM, [])
                    row.append(
                        _ask(other, part, f"random-{draw}", f"{RANDOM} {draw + 1}", kept, progress)
                    )
    return answered, said


def _ask(
    asked: Asked, part: Part, key: str, name: str, kept: Kept, progress: Progress | None
) -> list[Any]:
    tell = within(f"{name}: {part.name}", progress)
    place = "".join(c if c.isalnum() else "-" for c in part.name)
    return kept.of(f"{key}/{place}", lambda: asked.answers(part, tell))


def _fitting(
    parts: Sequence[Part], answered: Answered
) -> tuple[list[tuple[Part, list[Any], dict[str, list[list[Any]]]]], dict[str, int]]:
    """Keep the items that every model could read.

    Raises:
        DataError: a part has none.
    """
    found, left_out = [], {}
    for part in parts:
        rows = answered[part.name]
        every = [draw for draws in rows.values() for draw in draws]
        fits = [all(each[n] is not None for each in every) for n in range(len(part.items))]
        # Of a question that is asked in several orders, all or none.
        lacking = {str(item.source) for item, ok in zip(part.items, fits, strict=True) if not ok}
        places = [n for n, item in enumerate(part.items) if str(item.source) not in lacking]
        left_out[part.name] = len(part.items) - len(places)
        if not places:
            raise DataError(
                f"{part.name}: no model reads as many tokens as its {len(part.items)} items have (the shortest is "
                "too long, too): give fewer --shots or --max-new-tokens, or choose other --parts"
            )
        items = [part.items[place] for place in places]
        given = {
            name: [[each[n] for n in places] for each in draws] for name, draws in rows.items()
        }
        found.append((part, items, given))
    return found, left_out
