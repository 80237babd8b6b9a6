"""What attention and FFN do with a fact, against hooks on the whole model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
from bench.editable import Editable, Family
from test_suggest import facts_of
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)
from typer.testing import CliRunner

from modalign.cli import app
from modalign.editing.engine.forward import Row
from modalign.editing.engine.spec import ModelSpec, SpecError
from modalign.editing.layers.analysis import TOP, Analysis, analyse, measure
from modalign.editing.layers.components import Lens, find_ends, read_states
from modalign.editing.layers.facts import known_facts
from modalign.editing.layers.pages import analysis_report
from modalign.numbers.estimate import Estimate


def plain_layer(model: Any, ids: tuple[int, ...], layer: int) -> dict[str, torch.Tensor]:
    """Inputs and outputs of the components and of the layer at the last token, by module names."""
    block: Any = plain.layers_of(model)[layer]
    gptj = model.config.model_type == "gptj"
    norms = (
        (block.ln_1, block.ln_1)
        if gptj
        else (block.input_layernorm, block.post_attention_layernorm)
    )
    where = {
        "attention in": norms[0],
        "ffn in": norms[1],
        "attention out": plain.module_at(model, layer, "attention"),
        "ffn out": plain.module_at(model, layer, "ffn"),
        "residual": block,
    }
    found = {}
    for name, module in where.items():
        with plain.recording(module, "output") as seen, torch.no_grad():
            model(input_ids=torch.tensor([ids]), use_cache=False)
        found[name] = seen[0][0, -1]
    return found


def plain_lens(model: Any, vector: torch.Tensor) -> torch.Tensor:
    norm = model.transformer.ln_f if model.config.model_type == "gptj" else model.model.norm
    with torch.no_grad():
        logits: torch.Tensor = model.lm_head(norm(vector))
    return logits


def jaccard(one: torch.Tensor, other: torch.Tensor) -> float:
    first, second = (set(each.topk(TOP).indices.tolist()) for each in (one, other))
    return len(first & second) / len(first | second)


@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_equals_the_plain_one(editable: Callable[[Family], Editable], family: Family) -> None:
    made = editable(family)
    spec = ModelSpec.detect(made.model)
    probes = known_facts(spec, made.tokenizer, facts_of(made), wanted=4).probes
    found = measure(spec, probes)
    embedded = measure(spec, probes, "embedding")
    weight = made.model.get_input_embeddings().weight.detach()
    for i, probe in enumerate(probes):
        for layer in range(spec.depth):
            states = plain_layer(made.model, probe.ids, layer)
            for name in ("attention", "ffn"):
                given, put = states[f"{name} in"], states[f"{name} out"]
                cosine = float(torch.cosine_similarity(given, put, dim=0))
                assert found[f"cosine/{name}"][i, layer] == pytest.approx(cosine, abs=1e-5)
                said = plain_lens(made.model, put)
                overlap = jaccard(plain_lens(made.model, given), said)
                assert found[f"jaccard/{name}"][i, layer] == pytest.approx(overlap, abs=0.021)
                overlap = jaccard(weight @ given, weight @ put)
                assert embedded[f"jaccard/{name}"][i, layer] == pytest.approx(overlap, abs=0.021)
                chance = float(said.softmax(-1)[probe.answer[0]])
                assert found[f"probability/{name}"][i, layer] == pytest.approx(chance, abs=1e-5)
            said = plain_lens(made.model, states["residual"])
            chance = float(said.softmax(-1)[probe.answer[0]])
            assert found["probability/residual"][i, layer] == pytest.approx(chance, abs=1e-5)


SMALL: dict[str, Any] = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4)),
    "neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**SMALL, num_attention_heads=4, intermediate_size=64)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SMALL, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32)
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SMALL,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=64,
            final_logit_softcapping=3.0,
        )
    ),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_components_add_up_in_every_architecture(name: str) -> None:
    """Parallel blocks, norms behind the projections, an FFN without a module of its own."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms that do something
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    spec = ModelSpec.detect(model)
    states = read_states(spec, find_ends(spec), [Row((3, 14, 15, 9), 0), Row((2, 6), 0)])
    added = states.outputs["attention"] + states.outputs["ffn"]
    before = states.residual[:, :-1]
    torch.testing.assert_close(before + added[:, 1:], states.residual[:, 1:], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[3, 14, 15, 9]])).logits[0, -1]
    torch.testing.assert_close(Lens(spec)(states.residual[:1, -1])[0], logits, atol=1e-5, rtol=1e-4)


def test_scaled_residuals_are_refused() -> None:
    config = GraniteConfig(
        **SMALL,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=64,
        residual_multiplier=0.2,
    )
    spec = ModelSpec.detect(GraniteForCausalLM(config).eval())
    with pytest.raises(SpecError, match="cannot be told apart"):
        find_ends(spec)


def test_says_what_the_numbers_say(editable: Callable[[Family], Editable]) -> None:
    made = editable("llama")
    found = analyse(made.model, made.tokenizer, facts_of(made), wanted=30)
    assert found == analyse(made.model, made.tokenizer, facts_of(made), wanted=30)
    assert not found.parallel
    assert found.known == 30
    verdict = found.sentences[0]
    expected = {
        (True, False): "attention changes its input more",
        (False, True): "the FFN changes its input more",
        (False, False): "no difference found",
    }[found.cosine_gap.low > 0, found.cosine_gap.high < 0]
    assert expected in verdict
    gaps = [row.cosine["ffn"].value - row.cosine["attention"].value for row in found.rows]
    assert found.cosine_gap.value == pytest.approx(np.mean(gaps))
    assert found.rows[-1].probability["residual"].value > 80


def test_overlapping_intervals_are_no_difference() -> None:
    from modalign.editing.layers.analysis import _change

    def gap(low: float, high: float) -> Estimate:
        return Estimate(value=(low + high) / 2, low=low, high=high, n=5, protocol="", unit="cosine")

    assert "no difference found" in _change("x", gap(-0.1, 0.2), [gap(-0.1, 0.1), gap(0.1, 0.2)])
    assert "in 1 of 2 layers" in _change("x", gap(-0.1, 0.2), [gap(-0.1, 0.1), gap(0.1, 0.2)])
    assert "attention changes its input more" in _change("x", gap(0.1, 0.2), [])
    assert "the FFN changes its input more" in _change("x", gap(-0.3, -0.2), [])


def test_the_verb(editable: Callable[[Family], Editable], tmp_path: Path) -> None:
    made = editable("gptj")
    model, file, page = tmp_path / "model", tmp_path / "facts.jsonl", tmp_path / "out.html"
    made.model.save_pretrained(model)
    made.tokenizer.save_pretrained(model)
    rows = [
        {"subject": f.subject, "prompt": f.prompt, "attribute": f.attribute} for f in facts_of(made)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    verb = ["edit", "analyze", str(model), str(file), "--facts", "9", "--out", str(page)]
    result = CliRunner().invoke(app, [*verb, "--json"])
    assert result.exit_code == 0, result.output
    found = Analysis.model_validate_json(result.stdout)
    assert found.parallel
    assert page.read_text() == analysis_report(found).html()
    assert len(re.findall('class="chart"', page.read_text())) == 3
    shown = CliRunner().invoke(app, [*verb, "--overwrite"])
    assert "9 of the 9 facts asked for are known" in shown.stdout
    assert CliRunner().invoke(app, [*verb, "--projection", "x"]).exit_code != 0
