"""Which parts of the text suite a folder holds, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modalign.errors import DataError, UsageError, choose
from modalign.evaluation.suites import ethics as of_ethics
from modalign.evaluation.suites.domains import SUFFIXES, domain
from modalign.evaluation.suites.gsm8k import SHOTS, gsm8k
from modalign.evaluation.suites.parts import ORDERS, Part
from modalign.evaluation.suites.truthfulqa import truthfulqa

SUITES = {"text": ("truthfulqa", "ethics", "gsm8k", "domains")}
_PROBLEMS = ("gsm8k_test.jsonl", "gsm8k_dev.jsonl")
_EXAMPLES = "gsm8k_train.jsonl"


def check_names(suite: str, parts: Sequence[str]) -> None:
    """Refuse an unknown suite or part.

    Raises:
        UsageError: with the names there are.
    """
    if suite not in SUITES:
        raise UsageError(f"no suite {suite!r}: {choose(suite, SUITES)}")
    for name in parts:
        if name not in SUITES[suite]:
            raise UsageError(f"no part {name!r} of suite {suite}: {choose(name, SUITES[suite])}")


def find_parts(
    folder: Path,
    wanted: Sequence[str] = (),
    *,
    orders: int = ORDERS,
    shots: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    letters: bool = False,
) -> tuple[list[Part], list[str]]:
    """Read the suite's parts from a folder.

    Args:
        folder: with the files, or with ``truthfulqa/``, ``ethics/``, ``gsm8k/`` (or ``math_code/``) and
            ``text_domains/``.
        wanted: names of parts; all that are there by default.
        orders: in how many orders options stand.
        shots: examples before a problem; ``SHOTS`` if there is a file of examples, by default.
        seed: of orders, examples, and of what is drawn.
        limit: at most so many items of each part.
        letters: also show TruthfulQA's options under letters.

    Returns:
        The parts, and what a reader should know of what was not found.

    Raises:
        DataError: a file cannot be used, a wanted part is not there, or none is.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of suite data")
    found: list[Part] = []
    lacking: dict[str, str] = {}
    if "truthfulqa" in (wanted or SUITES["text"]):
        file = _first(folder, ("", "truthfulqa"), ("mc_task.json",))
        if file is None:
            lacking["truthfulqa"] = "mc_task.json, here or in truthfulqa/"
        else:
            found += truthfulqa(file, orders=orders, seed=seed, limit=limit, letters=letters)
    if "ethics" in (wanted or SUITES["text"]):
        files = {name: _ethics_file(folder, name) for name in of_ethics.PARTS}
        missing = [name for name, file in files.items() if file is None]
        if missing:
            lacking[
                "ethics" if len(missing) == len(files) else f"ethics ({', '.join(missing)})"
            ] = f"{', '.join(f'{name}.csv' for name in missing)}, here or in ethics/"
        found += [
            of_ethics.ethics(name, file, orders=orders, seed=seed, limit=limit)
            for name, file in files.items()
            if file is not None
        ]
    if "gsm8k" in (wanted or SUITES["text"]):
        places = ("", "gsm8k", "math_code")
        file = _first(folder, places, _PROBLEMS)
        if file is None:
            lacking["gsm8k"] = f"{' or '.join(_PROBLEMS)}, here or in gsm8k/ or math_code/"
        else:
            examples = _first(folder, places, (_EXAMPLES,))
            count = (SHOTS if examples is not None else 0) if shots is None else shots
            found.append(gsm8k(file, examples, shots=count, seed=seed, limit=limit))
    if "domains" in (wanted or SUITES["text"]):
        texts = _texts(folder)
        if not texts:
            lacking["domains"] = f"files of text ({', '.join(SUFFIXES)}) in text_domains/"
        found += [domain(file, seed=seed, limit=limit) for file in texts]
    notes = [f"{name}: left out, {folder} holds no {files}." for name, files in lacking.items()]
    if (wanted and lacking) or not found:
        said = "; ".join(f"{name} needs {files}" for name, files in lacking.items())
        raise DataError(f"{folder}: parts of the suite are missing: {said}")
    return found, notes


def _first(folder: Path, places: Sequence[str], names: Sequence[str]) -> Path | None:
    every = (folder / place / name for name in names for place in places)
    return next((file for file in every if file.is_file()), None)


def _ethics_file(folder: Path, name: str) -> Path | None:
    short = {"commonsense": "cm", "utilitarianism": "util"}.get(name, name)
    return _first(folder, ("", "ethics"), (f"{name}.csv", f"{short}_test.csv"))


def _texts(folder: Path) -> list[Path]:
    inside = folder / "text_domains"
    if not inside.is_dir():
        return []
    return sorted(
        file
        for file in inside.iterdir()
        if file.is_file() and file.suffix in SUFFIXES and file.stem.casefold() != "readme"
    )
