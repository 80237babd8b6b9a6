"""``modalign prune`` beyond the cut: targets, candidates, recovery, patches, media, resuming, accidents."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny
from modalign.compression.pruning import cutting, run, targets
from modalign.compression.pruning.config import PruneConfig
from modalign.compression.pruning.recovery import Recovery
from modalign.compression.pruning.results import Pruning
from modalign.compression.pruning.run import prune
from modalign.errors import UsageError
from modalign.memory import bytes_of
from modalign.models.export import save_model
from modalign.patches.difference import difference
from modalign.patches.storage import save_patch

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain text: ten documents."""
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    words = "one two three four five six seven eight nine ten"
    path.write_text("\n\n".join(f"what is {words[place:]}?" for place in range(10)))
    return path


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the clean process."""
    monkeypatch.setattr(run, "check_clean", lambda *given: 0.0)


def pruned(source: Path, out: Path, text: Path, **options: Any) -> Pruning:
    """Prune, with a recovery of a few samples and without times."""
    given = {"recover_budget": "8samples", "rounds": 0, "data": str(text)}
    places = {name: options.pop(name) for name in ("patch", "resume") if name in options}
    return prune(PruneConfig(model=str(source), **(given | options)), out, **places)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# ---------------------------------------------------------------------- targets


def test_sizes_are_read() -> None:
    assert bytes_of("2GiB", "--memory") == 2 * 1024**3
    assert bytes_of("1.5 kB", "--memory") == 1500
    with pytest.raises(UsageError, match="2GiB"):
        bytes_of("2", "--memory")


@pytest.mark.usefixtures("unchecked")
def test_memory_is_kept_to(llm_folder: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    source = llm_folder("llama")
    whole = (source / "model.safetensors").stat().st_size
    found = pruned(source, tmp_path / "out", text, memory=f"{whole - 20_000}B", recover="none")
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert whole - 25_000 < size <= whole - 20_000
    assert found.row("pruned").bytes == size


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("form", "share", "kept"), [("depth", 0.5, 2), ("depth", 0.8, 3)])
def test_latency_takes_the_largest_model_that_is_fast_enough(
    form: str,
    share: float,
    kept: int,
    llm_folder: Callable[..., Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Time is made to be proportional to the number of layers: of four, 0.8 of the time leaves three."""

    def measured(models: dict[str, Any], **options: Any) -> dict[str, Any]:
        depth = {name: model.config.num_hidden_layers for name, model in models.items()}
        ratio = SimpleNamespace(value=depth["pruned"] / depth["parent"])
        return {"pruned": [SimpleNamespace(next_ratio=ratio)]}

    monkeypatch.setattr(targets, "measure", measured)
    source, out = llm_folder("llama"), tmp_path / "out"
    found = pruned(source, out, text, latency=share, form=form, recover="none")
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == kept
    assert f"{kept / 4:.2f} of the parent's time" in found.cutting.notes[0]
    with pytest.raises(UsageError, match="out of reach"):
        pruned(source, tmp_path / "no", text, latency=0.2, form=form, recover="none")


# ---------------------------------------------------------------------- candidates and recovery


@pytest.mark.usefixtures("unchecked")
def test_auto_chooses_by_validation_after_a_short_recovery_and_shows_all(
    llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source, out = llm_folder("llama"), tmp_path / "out"
    found = pruned(source, out, text, form="auto", keep=0.7)
    tried = {each.name: each for each in found.cutting.candidates}
    assert set(tried) == {
        "uniform", "uniform-mlp", "depth-block_influence", "depth-leave_one_out",
    }  # fmt: skip
    judged = {name: each.after.value for name, each in tried.items() if each.after}
    assert len(judged) >= 2
    assert all(each.refused for name, each in tried.items() if name not in judged)
    best = min(judged, key=lambda name: judged[name])
    assert [name for name, each in tried.items() if each.chosen] == [best]
    assert found.cutting.removed == tried[best].removed
    assert all(name in (out / "report.html").read_text() for name in tried)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("form", ["mask", "per_layer"])
def test_recovery_keeps_the_form(
    form: str, llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source, out = llm_folder("llama"), tmp_path / "out"
    found = pruned(
        source, out, text, form=form, keep=0.7, training={"learning_rates": {"llm": 1e-2}}
    )
    bare = pruned(
        source, tmp_path / "bare", text, form=form, keep=0.7, recover="none", compensate=False
    )
    assert found.cutting.removed == bare.cutting.removed
    trained, cut = weights(out), weights(tmp_path / "bare")
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(trained[name], cut[name])
    if form == "mask":
        gone = cut[name].abs().sum(0) == 0
        assert gone.any()
        assert torch.equal(trained[name].abs().sum(0) == 0, gone)
    else:
        assert (out / "modeling_pruned.py").read_text() == (
            tmp_path / "bare/modeling_pruned.py"
        ).read_text()
        again = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
        torch.testing.assert_close(again.state_dict()[name], trained[name])


def test_compensation_keeps_the_mean_output(
    llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    """With MLP units gone, layer 0's MLP has the parent's mean output over the calibration tokens."""
    source, out = llm_folder("llama"), tmp_path / "out"
    options = {"keep": 0.7, "units": ["mlp"], "recover": "none", "length": 64}
    found = pruned(source, out, text, **options)
    assert found.cutting.compensated
    assert "bias" in " ".join(weights(out))
    calibration: list[Any] = []

    def spy(workshop: Any, *given: Any, **more: Any) -> Any:
        calibration[:] = workshop.texts.scored
        raise UsageError("enough")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cutting.Workshop, "write", spy)
        with pytest.raises(UsageError):
            pruned(source, tmp_path / "no", text, **options)

    def mean_output(folder: Path) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        seen: list[torch.Tensor] = []
        projection = model.get_submodule("model.layers.0.mlp.down_proj")
        projection.register_forward_hook(lambda module, given, output: seen.append(output[0]))
        with torch.no_grad():
            for sample in calibration:
                model(torch.as_tensor(sample.ids)[None])
        return torch.cat(seen).mean(0)

    torch.testing.assert_close(mean_output(out), mean_output(source), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------- patches


@pytest.mark.usefixtures("unchecked")
def test_patches_are_the_folder_take_others_along_and_come_off(
    cli: Run, llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source, out, patch = llm_folder("llama"), tmp_path / "out", tmp_path / "small.safetensors"
    found = pruned(source, out, text, keep=0.7, patch=patch)
    recovery = tmp_path / "small.recovery.safetensors"
    assert found.patches == [str(patch), str(recovery)]

    name = "model.layers.1.mlp.down_proj.weight"

    def fixed(layers: range) -> Path:
        """A patch of the unpruned model: one row of the MLP's output in each of these layers."""
        edited, file = tmp_path / f"edited{len(layers)}", tmp_path / f"fix{len(layers)}.safetensors"
        AutoModelForCausalLM.from_pretrained(source).save_pretrained(edited)
        values = weights(edited)
        for layer in layers:
            values[name.replace("1", str(layer))][3] += 0.25
        save_file(values, edited / "model.safetensors", {"format": "pt"})
        save_patch(difference(edited, source, name="fix"), file)
        return file

    fix = fixed(range(1, 2))
    both = (patch, recovery)
    code, _, said = cli("patch", "apply", source, *both, "-o", tmp_path / "again")
    assert code == 0, said
    for key, value in weights(tmp_path / "again").items():
        assert torch.equal(value, weights(out)[key]), key
    code, _, said = cli("patch", "apply", source, *both, fix, "-o", tmp_path / "with")
    assert code == 0, said
    gained = weights(tmp_path / "with")[name] - weights(out)[name]
    torch.testing.assert_close(gained[3], torch.full_like(gained[3], 0.25))
    assert int((gained != 0).any(1).sum()) == 1
    code, _, said = cli("patch", "remove", tmp_path / "with", "--all")
    assert code == 0, said
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "with" / file).read_bytes() == (source / file).read_bytes()

    # What a structure removes, no patch can change.
    depth = tmp_path / "depth.safetensors"
    pruned(source, tmp_path / "less", text, form="depth", keep=0.5, patch=depth, recover="none")
    code, _, said = cli("patch", "apply", source, depth, fixed(range(4)), "-o", tmp_path / "no")
    assert code == 3
    assert "removes" in said
    assert not (tmp_path / "no").exists()


# ---------------------------------------------------------------------- media


@pytest.mark.parametrize("part", ["language", "vision"])
def test_a_model_with_media_is_pruned_and_answers(
    part: str,
    cli: Run,
    compose_tiny: Callable[..., Any],
    small_data: Path,
    tmp_path: Path,
) -> None:
    source, out = tmp_path / "model", tmp_path / "out"
    save_model(*compose_tiny("resampler" if part == "vision" else "mlp"), source)
    given = ("--data", small_data / "data.jsonl", "--units", "mlp", "--part", part)
    quick = ("--recover-budget", "8samples", "--set", "rounds=0")
    code, printed, said = cli("prune", source, "-o", out, *given, *quick, "--json")
    assert code == 0, said
    found = json.loads(printed)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["recovered"]["parameters"] < rows["parent"]["parameters"]
    assert rows["recovered"]["accuracy"]["n"] == rows["parent"]["accuracy"]["n"]
    assert found["clean_process_difference"] < 1e-4
    if part == "language":
        picture = tmp_path / "picture.png"
        picture.write_bytes(tiny.png_bytes(3))
        code, _, said = cli(
            "ask", out, "what is it?", "--media", f"image={picture}", "--max-new-tokens", "2"
        )
        assert code == 0, said
        code, _, said = cli("export", out, "-o", tmp_path / "exported")
        assert code == 0, said


def test_a_vision_tower_without_records_is_refused_in_words(
    cli: Run, compose_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    source = tmp_path / "model"
    save_model(*compose_tiny("mlp"), source)
    code, _, said = cli(
        "prune", source, "-o", tmp_path / "out", "--part", "vision", "--recover", "none"
    )
    assert code in (2, 3)
    assert "--data" in said


# ---------------------------------------------------------------------- accidents


@pytest.mark.usefixtures("unchecked")
def test_an_interrupted_run_resumes_to_the_same_folder(
    llm_folder: Callable[..., Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = llm_folder("llama")
    whole = pruned(source, tmp_path / "whole", text, keep=0.7)
    real = Recovery.run

    def broken(self: Recovery, *given: Any, **more: Any) -> Any:
        if self.name.startswith("random"):
            raise KeyboardInterrupt
        return real(self, *given, **more)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Recovery, "run", broken)
        with pytest.raises(KeyboardInterrupt):
            pruned(source, out, text, keep=0.7)
    assert not out.exists()
    with pytest.raises(UsageError, match="--resume"):
        pruned(source, out, text, keep=0.7)
    with pytest.raises(UsageError, match="another configuration"):
        pruned(source, out, text, keep=0.6, resume=True)
    with monkeypatch.context() as patched:  # what is done is not done again
        patched.setattr(run, "cut", lambda *given: pytest.fail("cut twice"))
        found = pruned(source, out, text, keep=0.7, resume=True)
    assert (out / "model.safetensors").read_bytes() == (
        tmp_path / "whole/model.safetensors"
    ).read_bytes()
    assert [row.loss for row in found.rows] == [row.loss for row in whole.rows]
    assert not (tmp_path / "out.run").exists()
    again = pruned(source, out, text, keep=0.7, resume=True)  # a finished run is only read
    assert again == found


@pytest.mark.usefixtures("unchecked")
def test_a_full_disk_leaves_nothing_half_written(
    cli: Run,
    llm_folder: Callable[..., Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    out = tmp_path / "out"
    given = (
        "prune",
        llm_folder("llama"),
        "-o",
        out,
        "--data",
        text,
        "--recover",
        "none",
        "--set",
        "rounds=0",
    )
    with monkeypatch.context() as patched:
        patched.setattr("modalign.patches.pruned_folder.save_file", full)
        code, _, said = cli(*given)
    assert code == 1, said
    assert "No space left" in said
    assert not out.exists()
    with monkeypatch.context() as patched:  # the last copy
        patched.setattr(run.shutil, "copytree", full)
        code, _, said = cli(*given, "--resume")
    assert code == 1, said
    assert not out.exists()
    code, _, said = cli(*given, "--resume")
    assert code == 0, said
    assert (out / "report.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
