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

from modalign.compression.pruning.run import prune_model
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
    monkeypatch.setattr("modalign.compression.pruning.run._check_clean", lambda *given: 0.0)


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
    found = prune_model(source, out, keep=0.6, units=units, text=text)
    parent = AutoModelForCausalLM.from_pretrained(source)
    small = AutoModelForCausalLM.from_pretrained(out)
    assert found.pruned.parameters == sum(p.numel() for p in small.parameters())
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
    prune_model(source, out, keep=0.5, form="depth", text=text)
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


def test_the_verb_end_to_end_and_what_it_refuses(
    cli: Run, llm_folder: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source, out = llm_folder("llama"), tmp_path / "out"
    given = ["prune", str(source), "-o", str(out), "--text", str(text)]
    code, printed, said = cli(*given, "--json")
    assert code == 0, said
    found = json.loads(printed)
    assert found == json.loads((out / "result.json").read_text())
    assert found["pruned"]["parameters"] == found["random"]["parameters"]
    assert found["pruned"]["parameters"] < found["parent"]["parameters"]
    assert found["pruned"]["bytes"] < found["parent"]["bytes"]
    loss = found["pruned"]["loss"]
    assert loss["low"] <= loss["value"] <= loss["high"]
    assert found["clean_process_difference"] < 1e-4

    def refused(code: int, *words: str, options: tuple[str, ...]) -> None:
        got, _, said = cli("prune", *options, "--text", str(text))
        assert got == code, said
        assert "Traceback" not in said
        assert all(word in " ".join(said.split()) for word in words), said

    new = ("-o", str(tmp_path / "new"))
    refused(2, "--overwrite", options=(str(source), "-o", str(out)))
    refused(2, "above 0", options=(str(source), *new, "--keep", "1"))
    refused(2, "out of reach", options=(str(source), *new, "--keep", "0.001"))
    refused(2, "unifrm", options=(str(source), *new, "--form", "unifrm"))
    refused(2, "no units", options=(str(source), *new, "--units", "neurons"))
    refused(2, "--units mlp", options=(str(llm_folder("gpt2")), *new))
    refused(2, "ranks layers", options=(str(source), *new, "--score", "block_influence"))

    one = tmp_path / "one"
    code, _, said = cli(
        "prune",
        str(source),
        "-o",
        str(one),
        "--form",
        "depth",
        "--keep",
        "0.25",
        "--text",
        str(text),
    )
    assert code == 0, said
    refused(2, "one layer left", options=(str(one), *new, "--form", "depth"))

    weights = load_file(one / "model.safetensors")
    name = next(each for each in weights if each.endswith("down_proj.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, one / "model.safetensors", {"format": "pt"})
    refused(3, name, "not finite", options=(str(one), *new))

    config = json.loads((one / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (one / "config.json").write_text(json.dumps(config))
    refused(2, "quantised", options=(str(one), *new))

    del config["quantization_config"]
    (one / "config.json").write_text(json.dumps({**config, "layer_widths": [{}]}))
    refused(2, "differ in width", options=(str(one), *new))

    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    code, _, said = cli("prune", str(source), *new, "--text", str(empty))
    assert code == 3, said
    assert "no text" in said
    assert not (tmp_path / "new").exists()
