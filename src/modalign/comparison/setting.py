"""How a comparison was run: enough to repeat it, and why a repetition may give other bits."""

from __future__ import annotations

import importlib.metadata
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from modalign.comparison.config import CompareConfig
from modalign.comparison.job import JobResult, Place
from modalign.comparison.racing import Total
from modalign.comparison.results import Setting
from modalign.devices import processor
from modalign.files import sha256
from modalign.starter.build import WEIGHTS
from modalign.training.budget import Budget
from modalign.training.parallel import device_of
from modalign.training.splits import Splits
from modalign.version import __version__


def setting_of(config: CompareConfig, splits: Splits, results: Sequence[JobResult]) -> Setting:
    """Return how a comparison with these trainings was run; who assembles it fills in the times.

    Where trainings ran on machines of several kinds, the first one's is named, and that there were others.
    """
    places = [result.place for result in results if result.place is not None]
    here = Place(
        host=socket.gethostname(),
        processor=processor(),
        threads=config.threads,
        device=str(device_of(config.training)),
    )
    place = places[0] if places else here
    return Setting(
        command="",
        version=__version__,
        started="",
        finished="",
        seconds=0.0,
        budget=config.budget,
        metric=config.metric,
        llm=shown_part(config.parts.llm),
        encoder=", ".join(map(shown_part, config.parts.encoder.values())) or "none",
        llm_mode=config.training.llm,
        encoder_mode=config.training.encoder,
        seeds=sorted({result.seed for result in results}),
        device=place.device,
        dtype=config.training.dtype,
        threads=place.threads,
        processor=place.processor,
        may_differ=_may_differ(config, place, places),
        train_records=len(splits.train),
        val_records=len(splits.val),
        eval_records=len(splits.evaluation),
        val_source=splits.val_source,
        hashes=_hashes(config),
        libraries=installed(),
    )


def installed() -> dict[str, str]:
    """Versions of the libraries that figures depend on."""
    names = ("torch", "transformers", "peft", "accelerate", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def _may_differ(config: CompareConfig, place: Place, places: Sequence[Place]) -> list[str]:
    """Return why the same command may not be bit-identical."""
    found = [
        f"On another kind of processor than {place.processor}, or with other versions of the libraries, sums are "
        "rounded otherwise.",
        f"With another number of threads than {place.threads} sums are taken in another order.",
    ]
    kinds = sorted({f"{p.processor}, {p.threads} threads, {p.device}" for p in places})
    if len(kinds) > 1:
        found.append(f"Trainings ran on machines of several kinds: {'; '.join(kinds)}.")
    if any(not p.device.startswith("cpu") for p in (place, *places)):
        found.append("A GPU takes some sums in an order that changes from run to run.")
    if Budget.parse(config.budget).kind == "seconds":
        found.append("A budget in seconds pays for as many steps as the machine manages.")
    if config.total and Total.parse(config.total).kind == "seconds":
        found.append("A total in seconds pays for as many trainings as the machine manages.")
    return found


def shown_part(name: str) -> str:
    """Return a part's name for display: of a folder its last component, else the name itself."""
    if not Path(name).exists():
        return name
    shipped = {"language": "starter language model", "vision": "starter vision encoder"}
    for folder, text in shipped.items():
        if Path(name).resolve() == (WEIGHTS / folder).resolve():
            return text
    return Path(os.path.abspath(name)).name  # a link keeps its own name


def _hashes(config: CompareConfig) -> dict[str, str]:
    files = {name: getattr(config.data, name) for name in ("train", "val", "eval", "text")}
    for name, part in {"llm": config.parts.llm, **config.parts.encoder}.items():
        files[name] = str(Path(part) / "model.safetensors")
    return {
        name: sha256(Path(path)) for name, path in files.items() if path and Path(path).is_file()
    }
