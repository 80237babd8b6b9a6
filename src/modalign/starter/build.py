"""The starter's files: shipped weights, and the scenes as an ordinary data set on disk.

``modalign starter build`` pretrains both models again from seed; the data set is written on first use to
the user's cache directory, as PNG files and chat JSON Lines, and read like any other data.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, PlainSerializer

from modalign.cache import cache_directory, in_use
from modalign.errors import choose
from modalign.files import new_folder
from modalign.progress import Progress
from modalign.starter import language, vision
from modalign.starter.scenes import (
    TRAINED_SKILLS,
    TRANSFER_SKILL,
    Scene,
    Split,
    ask_several,
    draw_for_skill,
    render,
    to_png,
)

DATA_VERSION = 3
SCENES = {"train": 5000, "val": 350, "eval": 900}
QUESTIONS_PER_SCENE = 2
# Shares of training scenes: with one conversation of several turns; with a caption; with a text-only row.
CONVERSATION_SHARE = 0.4
CAPTION_SHARE = 0.4
TEXT_ONLY_SHARE = 0.3

PREFIX = "starter:"  # prefix of the names of the starter's parts
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Starter:
    """Paths of the starter's parts."""

    llm: Path
    encoder: Path
    train: Path
    val: Path
    eval: Path


def build_models(out: Path = WEIGHTS, progress: Progress | None = None) -> None:
    """Pretrain the language model and the vision encoder from seed into ``out``."""

    def tell(name: str) -> Callable[[int, int, float], None]:
        return lambda step, steps, _loss: progress(name, step, steps) if progress else None

    with new_folder(out / "language") as folder:
        language.pretrain(folder, progress=tell("language model"))
    with new_folder(out / "vision") as folder:
        vision.pretrain(folder, progress=tell("vision encoder"))


def starter(progress: Progress | None = None) -> Starter:
    """Return the starter, and write its data set if missing."""
    folder = _data_folder()
    if not (folder / "complete").exists():
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        write_data(temporary, progress=progress)
        (temporary / "complete").touch()
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster; both wrote the same
            shutil.rmtree(temporary, ignore_errors=True)
    in_use(folder)
    return _starter()


def _data_folder() -> Path:
    return cache_directory() / f"starter-{DATA_VERSION}"


def _starter() -> Starter:
    folder = _data_folder()
    return Starter(
        WEIGHTS / "language",
        WEIGHTS / "vision",
        folder / "train.jsonl",
        folder / "val.jsonl",
        folder / "eval.jsonl",
    )


def named(path: str) -> str:
    """Replace the path of a starter part by its name, ``starter:llm``, which works in any installation."""
    for part, own in asdict(_starter()).items():
        if os.path.abspath(path) == os.path.abspath(own):
            return PREFIX + part
    return path


def located(name: str) -> str:
    """Return the path of a starter part; other names are returned unchanged.

    Raises:
        ValueError: the starter has no such part.
    """
    if not name.startswith(PREFIX):
        return name
    parts = asdict(_starter())
    part = name.removeprefix(PREFIX)
    if part not in parts:
        raise ValueError(f"the starter has no part {part!r}: {choose(part, parts)}")
    if part in SCENES:
        starter()
    return str(parts[part])


BuiltIn = Annotated[
    str, AfterValidator(located), PlainSerializer(named, str, when_used="json")
]  # a path or a name; starter parts are stored by name


def write_data(
    folder: Path, scenes: dict[str, int] | None = None, progress: Progress | None = None
) -> None:
    """Write the three splits: images under ``images/``, conversations as JSON Lines."""
    for number, (split, count) in enumerate((scenes or SCENES).items()):
        _write_split(folder, split, count, number, progress)  # type: ignore[arg-type]


def _write_split(
    folder: Path, split: Split, count: int, number: int, progress: Progress | None
) -> None:
    rng = np.random.default_rng([20231107, number])
    images = folder / "images" / split
    images.mkdir(parents=True, exist_ok=True)
    skills = [*TRAINED_SKILLS, *([TRANSFER_SKILL] if split == "eval" else [])]
    rows: list[dict[str, Any]] = []
    for index in range(count):
        # The first question's skill determines the scene, so every skill occurs equally often.
        scene, question = draw_for_skill(rng, split, skills[index % len(skills)])
        name = f"{split}-{index:05d}"
        (images / f"{name}.png").write_bytes(to_png(render(scene, rng)))
        path = f"images/{split}/{name}.png"
        if split == "train" and rng.random() < CONVERSATION_SHARE:
            turns = ask_several(scene, skills, int(rng.integers(3, 7)), rng, first=question)
            pairs = [(turn.text, turn.answer) for turn in turns]
            rows.append(_row(f"{name}-conversation", path, pairs, "conversation"))
        else:
            asked = ask_several(scene, skills, QUESTIONS_PER_SCENE, rng, first=question)
            rows += [
                _row(f"{name}-{turn}", path, [(item.text, item.answer)], item.skill)
                for turn, item in enumerate(asked)
            ]
        if split == "train":
            rows += _extra_rows(rng, scene, name, path)
        if progress:
            progress(f"{split} scenes", index + 1, count)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(lines)


def _extra_rows(
    rng: np.random.Generator, scene: Scene, name: str, path: str
) -> list[dict[str, Any]]:
    """Make captions, and rows without an image, as in instruction data."""
    rows = []
    if rng.random() < CAPTION_SHARE:
        rows.append(
            _row(f"{name}-caption", path, [("describe the scene.", scene.describe())], "caption")
        )
    if rng.random() < TEXT_ONLY_SHARE:
        pairs = [language.fact_question(rng) for _ in range(int(rng.integers(1, 4)))]
        rows.append(_row(f"{name}-text", None, pairs, "text"))
    return rows


def _row(
    identifier: str, image: str | None, turns: Sequence[tuple[str, str]], skill: str
) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        content: list[dict[str, str]] = [{"type": "text", "text": question}]
        if image is not None and not messages:
            content.insert(0, {"type": "image", "image": image})
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
    return {"id": identifier, "messages": messages, "skill": skill}
