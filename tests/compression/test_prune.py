"""``modalign prune``: scores by formulas, folders against silenced parents, and the verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from modalign.compression.pruning.config import PruneConfig
from modalign.compression.pruning.results import Pruning
from modalign.compression.pruning.run import prune
from modalign.compression.pruning.scores import Group, score_named

Run = Callable[..., tuple[int, str, str]]
OUTPUTS = {
    "gpt2": ("transformer.h", ("attn.c_proj", "mlp.c_proj"), 0),
    "llama": ("model.layers", ("self_attn.o_proj", "mlp.down_proj"), 1),
    "qwen3": ("model.layers", ("self_attn.o_proj", "mlp.down_proj"), 1),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain text: eight documents."""
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    words = "one two three four five six seven eight"
    path.write_text("\n\n".join(f"what is {words[place:]}?" for place in range(8)))
    return path


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the clean process: these tests load the folder with plain transformers themselves."""
    monkeypatch.setattr("modalign.compression.pruning.run.check_clean", lambda *given: 0.0)


def cut(source: Path, out: Path, text: Path, **options: Any) -> Pruning:
    """Prune without recovery and without times."""
    given = {"recover": "none", "rounds": 0, "data": str(text)}
    return prune(PruneConfig(model=str(source), **(given | options)), out)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model.eval()(torch.tensor([[5, 9, 7, 11, 6, 8]])).logits)


# ---------------------------------------------------------------------- scores


def test_scores_are_their_formulas() -> None:
    torch.manual_seed(0)
    units, rows, samples = 5, 3, 40
    x, down = torch.randn(samples, units) + 1, torch.randn(rows, units)
    weights, gradients = torch.randn(units, 4), torch.randn(units, 4)
    group = Group(
        weights=weights,
        gradients=gradients,
        squares=torch.empty(0),
        columns=down.T[:, :, None],
        mean=x.mean(0)[:, None],
        variance=x.var(0, correction=0)[:, None],
        norm=x.square().mean(0).sqrt()[:, None],
        magnitude=x.abs().mean(0)[:, None],
        generator=torch.Generator(),
    )

    def found(name: str) -> list[float]:
        return list(score_named(name).function(group).tolist())

    def each(formula: Callable[[int], float]) -> list[float]:
        return [formula(unit) for unit in range(units)]

    w, g = weights.tolist(), gradients.tolist()
    assert found("l2") == pytest.approx(each(lambda u: sum(v * v for v in w[u])), rel=1e-4)
    taylor = each(lambda u: sum(abs(a * b) for a, b in zip(w[u], g[u], strict=True)))
    assert found("taylor") == pytest.approx(taylor, rel=1e-4)
    # Wanda: |W_ij| times the norm of input j over samples; here root mean square, mean over rows.
    wanda = each(
        lambda u: (
            sum(abs(down[i, u].item()) for i in range(rows))
            / rows
            * (sum(v * v for v in x[:, u].tolist()) / samples) ** 0.5
        )
    )
    assert found("wanda") == pytest.approx(wanda, rel=1e-4)
    # FLAP: the sample variance times the squared norm of the column, then standardised.
    centre = [sum(x[:, u].tolist()) / samples for u in range(units)]
    raw = each(
        lambda u: (
            sum((v - centre[u]) ** 2 for v in x[:, u].tolist())
            / samples
            * sum(v * v for v in down[:, u].tolist())
        )
    )
    middle = sum(raw) / units
    spread = (sum((v - middle) ** 2 for v in raw) / units) ** 0.5
    wanted = [(v - middle) / spread for v in raw]
    assert found("fluctuation") == pytest.approx(wanted, rel=1e-3, abs=1e-4)


# ---------------------------------------------------------------------- folders


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", sorted(OUTPUTS))
def test_uniform_is_the_parent_without_the_units(
    family: str, llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source, out = llm_folder(family), tmp_path / "out"
    # GPT-2 cannot have fewer heads at the same width.
    units = ["mlp"] if family == "gpt2" else None
    found = cut(source, out, text, keep=0.6, units=units, compensate=False)
    parent = AutoModelForCausalLM.from_pretrained(source)
    small = AutoModelForCausalLM.from_pretrained(out)
    assert found.row("pruned").parameters == sum(p.numel() for p in small.parameters())
    prefix, outputs, axis = OUTPUTS[family]
    pairs = zip(parent.get_submodule(prefix), small.get_submodule(prefix), strict=True)
    for before, after in pairs:
        for name in outputs[1:] if units else outputs:
            full = before.get_submodule(name).weight.data.movedim(axis, 0)
            kept = after.get_submodule(name).weight.data.movedim(axis, 0)
            stays = (full[:, None] == kept[None]).all(-1).any(1)
            assert int(stays.sum()) == len(kept) < len(full)
            full[~stays] = 0
    torch.testing.assert_close(logits(small), logits(parent), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", sorted(OUTPUTS))
def test_depth_is_the_parent_without_the_layers(
    family: str, llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source, out = llm_folder(family), tmp_path / "out"
    cut(source, out, text, keep=0.5, form="depth")
    parent = AutoModelForCausalLM.from_pretrained(source)
    small = AutoModelForCausalLM.from_pretrained(out)
    prefix, outputs, _ = OUTPUTS[family]
    layers, kept = parent.get_submodule(prefix), small.get_submodule(prefix)
    weights = [layer.get_submodule(outputs[1]).weight for layer in kept]
    gone = [
        place
        for place, layer in enumerate(layers)
        if not any(torch.equal(layer.get_submodule(outputs[1]).weight, w) for w in weights)
    ]
    assert len(gone) == 2 == len(kept)
    for place in gone:  # a layer that adds nothing hands on what it is given
        for name in outputs:
            for parameter in layers[place].get_submodule(name).parameters():
                parameter.data.zero_()
    torch.testing.assert_close(logits(small), logits(parent), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- the verb


def test_the_verb_end_to_end_and_its_report(
    cli: Run, llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source, out = llm_folder("llama"), tmp_path / "out"
    options = ("--recover-budget", "16samples", "--scratch", "--set", "rounds=1", "--eval", text)
    code, printed, said = cli("prune", source, "-o", out, "--data", text, *options, "--json")
    assert code == 0, said
    found = json.loads(printed)
    assert found == json.loads((out / "report.json").read_text())
    assert not (tmp_path / "out.run").exists()
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [
        "parent", "pruned", "recovered", "parent recovered", "random", "random recovered", "scratch",
    ]  # fmt: skip
    small = AutoModelForCausalLM.from_pretrained(out)
    count = sum(p.numel() for p in small.parameters())
    assert rows["recovered"]["parameters"] == rows["random"]["parameters"] == count
    assert count < rows["parent"]["parameters"]
    assert rows["recovered"]["bytes"] == (out / "model.safetensors").stat().st_size
    for row in rows.values():
        assert row["loss"]["low"] <= row["loss"]["value"] <= row["loss"]["high"]
        assert row["task_loss"]["n"] == 8  # windows
    for name in ("recovered", "parent recovered", "random recovered", "scratch"):
        assert 16 <= rows[name]["samples"] < 24  # whole batches
    # The teacher's passes are charged: the parent's forward beside forward and backward of the student.
    assert rows["recovered"]["flops"] > rows["recovered"]["samples"] * 6 * count
    assert [t["batch"] for t in rows["recovered"]["timings"]] == [1, 8]
    assert found["clean_process_difference"] < 1e-4
    assert {each["second"] for each in found["differences"]} == {
        "pruned", "parent recovered", "random recovered", "scratch",
    }  # fmt: skip
    page = (out / "report.html").read_text()
    for words in ("parent with the same recovery", "same size from scratch", "next token"):
        assert words in page
        assert words in (out / "report.md").read_text()


def test_what_is_refused(
    cli: Run, llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source, out = llm_folder("llama"), tmp_path / "out"
    quick = ("--recover", "none", "--set", "rounds=0", "--data", text)

    def refused(code: int, *words: str, options: tuple[Any, ...]) -> None:
        got, _, said = cli("prune", *quick, *options)
        assert got == code, said
        assert "Traceback" not in said
        assert all(word in " ".join(said.split()) for word in words), said

    new = ("-o", tmp_path / "new")
    out.mkdir()
    (out / "config.json").write_text("{}")
    refused(2, "--overwrite", options=(source, "-o", out))
    refused(2, "above 0", options=(source, *new, "--keep", "1"))
    refused(2, "two targets", options=(source, *new, "--keep", ".5", "--latency", ".5"))
    refused(2, "out of reach", options=(source, *new, "--keep", "0.001"))
    refused(2, "out of reach", options=(source, *new, "--memory", "1kB"))
    refused(2, "fit already", options=(source, *new, "--memory", "1GiB"))
    refused(2, "500MB", options=(source, *new, "--memory", "small"))
    refused(2, "zeros", options=(source, *new, "--form", "mask", "--latency", ".9"))
    refused(2, "unifrm", options=(source, *new, "--form", "unifrm"))
    refused(2, "no units", options=(source, *new, "--units", "neurons"))
    refused(2, "--units mlp", options=(llm_folder("gpt2"), *new))
    refused(2, "ranks layers", options=(source, *new, "--score", "block_influence"))
    refused(2, "vision tower", options=(source, *new, "--part", "vision"))
    refused(2, "adds no biases", options=(source, *new, "--form", "depth", "--compensate"))
    refused(2, "--recover lora", options=(source, *new, "--form", "mask", "--recover", "lora"))
    refused(2, "short recovery", options=(source, *new, "--form", "auto"))
    refused(2, ".safetensors", options=(source, *new, "--patch", tmp_path / "patch"))

    one = tmp_path / "one"
    code, _, said = cli("prune", source, "-o", one, "--form", "depth", "--keep", ".25", *quick)
    assert code == 0, said
    refused(2, "one layer left", options=(one, *new, "--form", "depth"))
    code, printed, said = cli("prune", one, "-o", tmp_path / "two", *quick, "--json")
    assert code == 0, said
    assert "a pruned model itself" in " ".join(json.loads(printed)["cutting"]["notes"])

    weights = load_file(one / "model.safetensors")
    name = next(each for each in weights if each.endswith("down_proj.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, one / "model.safetensors", {"format": "pt"})
    refused(3, name, "not finite", options=(one, *new))

    config = json.loads((one / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (one / "config.json").write_text(json.dumps(config))
    refused(2, "quantised", options=(one, *new))

    del config["quantization_config"]
    (one / "config.json").write_text(json.dumps({**config, "layer_widths": [{}]}))
    refused(2, "differ in width", options=(one, *new))

    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    refused(3, "no text", options=(source, *new, "--data", empty))
    empty.write_text("a")
    refused(3, options=(source, *new, "--data", empty))
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.run").exists()


def test_a_missing_shard_is_named(
    cli: Run, llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(llm_folder("llama"))
    model.save_pretrained(broken, max_shard_size="40KB")
    for file in llm_folder("llama").glob("*token*"):
        (broken / file.name).write_bytes(file.read_bytes())
    shard = sorted(broken.glob("model-*.safetensors"))[1]
    shard.unlink()
    code, _, said = cli("prune", broken, "-o", tmp_path / "new", "--data", text)
    assert code in (2, 3), said
    assert shard.name in said
    assert not (tmp_path / "new").exists()
