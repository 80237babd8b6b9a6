"""Prune, distil, merge: killed at any write they leave what was there whole, and go on to the same bytes."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kills
from modalign.compression.distillation import store as storing
from modalign.compression.distillation.config import DistillConfig
from modalign.compression.distillation.distill import distill
from modalign.compression.distillation.store import StoreRequest, store
from modalign.compression.pruning import run as pruning
from modalign.compression.pruning.config import PruneConfig
from modalign.compression.pruning.run import prune
from modalign.files import is_leftover
from modalign.merging.config import MergeConfig
from modalign.merging.run import merge_models
from modalign.patches import header
from modalign.runs import RECORD
from modalign.training.settings import TrainSettings

Run = Callable[..., tuple[int, str, str]]
RESUMED = 6  # of the states; all of them are looked at


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain text: ten documents."""
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    words = "one two three four five six seven eight nine ten"
    path.write_text("\n\n".join(f"what is {words[place:]}?" for place in range(10)))
    return path


@pytest.fixture(scope="module")
def two(
    llm_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A model, and another one of its shape."""
    first, second = llm_folder("llama"), tmp_path_factory.mktemp("two") / "second"
    shutil.copytree(first, second)
    torch.manual_seed(1)
    values = load_file(first / "model.safetensors")
    moved = {name: value + 0.01 * torch.randn_like(value) for name, value in values.items()}
    save_file(moved, second / "model.safetensors", {"format": "pt"})
    return {"first": first, "second": second}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process but this one loads what was written, and patches are made at one time."""

    class Unchecked:
        def __enter__(self) -> Unchecked:
            return self

        def __exit__(self, *given: object) -> None:
            pass

        def check(self, *given: object) -> int:
            return 0

    monkeypatch.setattr("modalign.merging.run.CleanProcess", Unchecked)
    monkeypatch.setattr(pruning, "check_clean", lambda *given: 0.0)
    monkeypatch.setattr(header, "now", lambda: "2026-01-01T00:00:00+00:00")


def whole(states: list[Path], places: dict[str, list[dict[str, bytes]]]) -> None:
    """In every state each place holds one of the contents that it may have; ``{}`` is nothing."""
    for state in states:
        for name, allowed in places.items():
            path = state / name
            found = {"": path.read_bytes()} if path.is_file() else kills.held(path)
            assert found in allowed, f"{state.name}: {name}"


def left_in(root: Path) -> list[Path]:
    """What is half-written below a folder; a folder without anything in it is nothing."""
    found = [path for path in root.rglob("*") if is_leftover(path)]
    return [path for path in found if path.is_file() or any(path.iterdir())]


# ---------------------------------------------------------------------- kill -9


def test_prune_over_a_model_and_a_patch_that_were_there(
    llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    root, source = tmp_path / "root", llm_folder("llama")
    root.mkdir()
    out, patch, recovery = (root / n for n in ("out", "p.safetensors", "p.recovery.safetensors"))
    shutil.copytree(llm_folder("mistral"), out)
    patch.write_bytes(b"an older patch")
    before = kills.held(out)
    config = PruneConfig(
        model=str(source), data=str(text), keep=0.7, recover_budget="4samples", rounds=0
    )
    states = kills.states(
        root, tmp_path / "states", lambda: prune(config, out, patch=patch, overwrite=True)
    )
    end, names = kills.held(root), {out.name, patch.name, recovery.name}
    assert {path.name for path in root.iterdir()} == names
    allowed = {out.name: [before, kills.held(out)], recovery.name: [{}, {"": end[recovery.name]}]}
    whole(states, allowed | {patch.name: [{"": b"an older patch"}, {"": end[patch.name]}]})
    for state in kills.spread(states, RESUMED):
        kills.restore(state, root)
        begun = (root / "out.run" / RECORD).exists() or (out / "report.json").exists()
        prune(config, out, patch=patch, resume=begun, overwrite=not begun)
        kills.same(kills.held(root), end, r"^out/(?!report)|^p\.")
        assert not left_in(root), state.name
        assert not (root / "out.run").exists()


@pytest.mark.parametrize("form", ["folder", "patch"])
def test_merge(form: str, two: dict[str, Path], text: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    parents = {name: str(folder) for name, folder in two.items()}
    given = {"search": "weight=0.3,0.6", "val": {"poem": str(text)}, "limit": 4}
    config = MergeConfig(parents=parents, form=form, **given)
    out, made = root / "out", {"folder": "out/model", "patch": "out/soup.safetensors"}[form]
    states = kills.states(root, tmp_path / "states", lambda: merge_models(config, out))
    end = kills.held(root)
    place = root / made
    whole(states, {made: [{}, {"": end[made]} if place.is_file() else kills.held(place)]})
    for state in kills.spread(states, RESUMED):
        kills.restore(state, root)
        merge_models(config, out, resume=True)
        kills.same(kills.held(root), end, r"^out/(?!report|\.run)")
        assert not left_in(root), state.name


def test_distil(llm_folder: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    config = DistillConfig(
        teacher=str(llm_folder("llama")), student_layers=1, data=str(text), budget="4samples",
        against=["cross_entropy"], training=TrainSettings(llm="full", batch_size=2),
    )  # fmt: skip
    states = kills.states(root, tmp_path / "states", lambda: distill(config, root / "kd"))
    end = kills.held(root)
    whole(states, {"kd/model": [{}, kills.held(root / "kd" / "model")]})
    for state in kills.spread(states, RESUMED):
        kills.restore(state, root)
        distill(config, root / "kd", resume=True)
        kills.same(kills.held(root), end, r"^kd/model/")
        assert not left_in(root), state.name


def test_store(
    llm_folder: Callable[..., Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "SHARD", 4)
    root = tmp_path / "root"
    root.mkdir()
    request = StoreRequest(str(llm_folder("llama")), str(text), root / "store", top=4)
    states = kills.states(root, tmp_path / "states", lambda: store(request))
    end = kills.held(root)
    kept = (name for name in end if name.endswith((".safetensors", "store.json")))
    shards = {name: [{}, {"": end[name]}] for name in kept}
    assert len(shards) == 4
    whole(states, shards)
    for state in kills.spread(states, RESUMED):
        kills.restore(state, root)
        store(request, resume=True)
        kills.same(kills.held(root), end, r"^store/(?!\.run)")
        assert not left_in(root), state.name


# ---------------------------------------------------------------------- a full disk


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: a write ends in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("verb", ["prune", "distill", "merge"])
def test_a_disk_that_is_full_in_the_middle_of_a_file(
    verb: str, two: dict[str, Path], text: Path, cli: Run, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    out, first = root / "out", two["first"]
    given: list[Any] = {
        "prune": ["prune", first, "--data", text, "--recover", "none", "--set", "rounds=0"],
        "distill": ["distill", "--teacher", first, "--student-layers", 1, "--data", text, "--budget", "4samples"],
        "merge": ["merge", *two.values()],
    }[verb]  # fmt: skip
    model = out if verb == "prune" else out / "model"
    size = (first / "model.safetensors").stat().st_size
    with small_files(size // 4):
        code, _, said = cli(*given, "-o", out)
    assert code == 1, said
    assert "File too large" in said
    assert "bug" not in said
    assert not model.exists()
    assert not left_in(root)
    code, _, said = cli(*given, "-o", out, "--resume")
    assert code == 0, said
    assert (model / "model.safetensors").stat().st_size > size // 4


@pytest.mark.parametrize("number", [1, 5, 12, 20, 30])
def test_a_disk_that_is_full_from_any_write_on(
    number: int, llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    out = root / "out"
    shutil.copytree(llm_folder("mistral"), out)
    before = kills.held(out)
    config = PruneConfig(
        model=str(llm_folder("llama")), data=str(text), keep=0.7, recover="none", rounds=0
    )

    def work() -> None:
        kills.full_from(root, number)
        prune(config, out, overwrite=True)

    assert kills.in_child(work) == 1
    assert kills.held(out) == before or (out / "report.json").exists()
    assert not [path for path in root.iterdir() if is_leftover(path)]
    begun = (root / "out.run" / RECORD).exists() or (out / "report.json").exists()
    prune(config, out, resume=begun, overwrite=not begun)
    assert {path.name for path in root.iterdir()} == {"out"}
