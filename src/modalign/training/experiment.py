"""The configuration of an experiment: parts, data, budget and training, as a parent plus changed fields."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from modalign.configuration import Fields, merged, read_fields, validated
from modalign.differences import flat
from modalign.errors import UsageError
from modalign.progress import Progress
from modalign.starter.build import starter
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.sources import DataFiles, Parts

# Rates for a language model of 0.4 M parameters: far too high for a large one.
STARTER_TRAINING: Fields = {
    "llm": "frozen",
    "learning_rates": LearningRates(connector=3e-3, llm=2e-3, encoder=1e-4).model_dump(),
    "batch_size": 16,
    "schedule": "trapezoid",  # with cosine, methods that take off late differ far more (docs/report.md)
}


class Experiment(BaseModel):
    """The configuration of every verb that trains.

    Attributes:
        parts: language model and encoder.
        data: data files; without ``val`` a fixed tenth of the training data is held out.
        budget: for one method and seed, e.g. ``20000samples``, ``10m``, ``3e14flops``.
        training: training settings.
        stages: the recipe of every method, instead of a single stage; a connector's own stage one runs
            before it.
    """

    model_config = ConfigDict(extra="forbid")

    parts: Parts
    data: DataFiles
    budget: str = "20000samples"
    training: TrainSettings = Field(default_factory=TrainSettings)
    stages: list[Stage] = Field(default_factory=lambda: [Stage()], min_length=1)


E = TypeVar("E", bound=Experiment)


def starter_experiment(progress: Progress | None = None) -> Fields:
    """Return the embedded default: handwriting scenes with the starter's two small models."""
    starter(progress)
    return {
        "parts": {
            "llm": "starter:llm",
            "encoder": {"image": "starter:encoder"},
            "feature_layer": -1,
            "image_size": 48,
            "patch_size": 8,
            "tools": {"starter_tools": None},
        },
        "data": {part: f"starter:{part}" for part in ("train", "val", "eval")},
        "budget": "12000samples",  # twelve methods twice within eight minutes on two cores
        "training": STARTER_TRAINING,
    }


def load_experiment(
    schema: type[E],
    path: str | Path | None,
    changes: Fields | None = None,
    progress: Progress | None = None,
    also: Fields | None = None,
) -> tuple[E, dict[str, str]]:
    """Resolve a configuration file and options against their parent.

    A file names its parent by ``extends: starter`` or ``extends: other.yaml``; without a parent it must be
    complete. Without a file, the parent is the starter. Relative paths in a file are relative to its
    folder.

    Args:
        schema: the configuration's schema.
        path: of the file.
        changes: fields that replace the file's.
        progress: called while the starter's data is written on first use.
        also: further fields of the schema that the starter sets.

    Returns:
        The configuration, and its differences from the parent as ``field -> value``.

    Raises:
        UsageError: an unreadable file, an unknown field, a wrong value.
    """

    def built_in() -> Fields:
        return {**starter_experiment(progress), **(also or {})}

    base, own = _resolved(path if path is None else Path(path), built_in)
    whole = _extended(_extended(base, own), changes or {})
    config = validated(schema, whole, str(path or "the options"))
    return config, {key: str(value) for key, value in flat(merged(own, changes or {})).items()}


def _resolved(
    path: Path | None, built_in: Callable[[], Fields], above: tuple[Path, ...] = ()
) -> tuple[Fields, Fields]:
    """Return the parent of a file, resolved, and the file's own fields."""
    if path is None:
        return built_in(), {}
    own = _read(path)
    if path.resolve() in above:
        raise UsageError(f"the configuration {path} extends itself")
    parent = own.pop("extends", None)
    if parent is None:
        return {}, own
    if parent == "starter":
        return built_in(), own
    base, fields = _resolved(path.parent / str(parent), built_in, (*above, path.resolve()))
    return _extended(base, fields), own


def _extended(base: Fields, changes: Fields) -> Fields:
    """Return a configuration with some fields changed.

    New training data also replaces the parent's validation and evaluation data, a new encoder its
    description, and a new language model the starter's learning rates.
    """
    base = dict(base)
    if _differs(base, changes, "parts", "llm") and base.get("training") == STARTER_TRAINING:
        base["training"] = {}
    if _differs(base, changes, "data", "train"):
        base["data"] = {}
    if _differs(base, changes, "parts", "encoder"):
        base["parts"] = {"llm": base["parts"].get("llm")} if "llm" in base["parts"] else {}
    return merged(base, changes)


def _differs(base: Fields, changes: Fields, section: str, field: str) -> bool:
    old, new = base.get(section), changes.get(section)
    if not isinstance(old, dict) or not isinstance(new, dict):
        return False
    return field in new and new[field] != old.get(field)


def _read(path: Path) -> Fields:
    """Return a file's fields, with paths resolved from its folder."""
    values = read_fields(path)
    data, parts = values.get("data"), values.get("parts")
    if isinstance(data, dict):
        for key in ("train", "val", "eval", "text", "media_root"):
            if isinstance(data.get(key), str):
                data[key] = str(path.parent / data[key])
    if isinstance(parts, dict):
        for holder in (parts, parts.get("encoder")):
            if isinstance(holder, dict):
                _name_folders(holder, path.parent)
    stages = values.get("stages")
    for stage in stages if isinstance(stages, list) else ():
        if isinstance(stage, dict) and isinstance(stage.get("references"), dict):
            _name_folders(stage["references"], path.parent)
    return values


def _name_folders(names: Fields, root: Path) -> None:
    """Convert names of folders and GGUF files beside the file to paths; other names may be the hub's."""
    for key, value in names.items():
        if not isinstance(value, str):
            continue
        beside = root / value
        if beside.is_dir() or (beside.suffix == ".gguf" and beside.is_file()):
            names[key] = str(root / value)
