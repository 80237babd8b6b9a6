"""All measures of some edits together: on one model, and on an edited one beside its base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tokenizers import TEXT, tokenizer

import tiny
from modalign.editing.benchmarks.evaluate import evaluate_edits
from modalign.editing.benchmarks.scores import (
    columns_of,
    metrics_of,
    score_edits,
    sum_metrics,
)
from modalign.editing.benchmarks.scoring import Question, score
from modalign.editing.edits import Edit, Neighbour
from modalign.errors import DataError, UsageError
from modalign.hashing import tensor_hash
from modalign.models.asking import tokenizer_of
from modalign.models.open import open_model
from modalign.numbers.estimate import Estimate
from modalign.patches import Patch, PatchHeader, save_patch
from modalign.patches.changes import DenseChange
from modalign.patches.header import BaseTensor

EDITS = [
    Edit(
        str(number),
        "Danielle",
        f"Danielle {number} speaks",
        0,
        "English",
        "French",
        paraphrases=(f"At home Danielle {number} talks in",),
        neighbours=(Neighbour(f"Jean {number} speaks", "French"),),
        generation_prompts=(f"Danielle {number}",),
        reference_texts=("English is the tongue of Danielle",),
        protocol="counterfact",
    )
    for number in range(3)
]


def counterfact_metrics(model: Any, tok: Any) -> dict[str, Estimate]:
    """Without anything generated."""
    scored = score_edits(model, tok, EDITS, "counterfact")
    columns = columns_of(scored.rows, "counterfact")
    return metrics_of(columns, "counterfact", resamples=50) | sum_metrics(scored, resamples=50)


def patch_of(model: Any, name: str) -> Patch:
    """A change large enough to be seen."""
    weight = model.get_parameter(name)
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double()
    base = {name: BaseTensor(sha256=tensor_hash(weight), shape=tuple(weight.shape))}
    header = PatchHeader(name="fix", method="ft", model="tiny", base=base)
    return Patch(header, {name: DenseChange(change)})


def test_an_edited_model_stands_beside_its_base() -> None:
    tok = tokenizer("bytes")
    base = tiny.language_model("llama", len(tok))
    before = {name: value.clone() for name, value in base.state_dict().items()}
    edited: Any = base + patch_of(base, "model.layers.1.mlp.down_proj.weight")
    told: list[str] = []
    result = evaluate_edits(
        edited,
        tok,
        EDITS,
        "counterfact",
        base=base,
        text=TEXT[:5],
        resamples=50,
        progress=lambda name, done, total: told.append(name),
    )
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert result.before is not None
    plain = counterfact_metrics(base, tok)
    assert {name: result.before[name] for name in plain} == plain
    after = counterfact_metrics(edited, tok)
    assert {name: result.metrics[name] for name in after} == after
    assert after["EM"].value != plain["EM"].value
    assert result.metrics["drift_kl"].value > 0
    assert {"GE", "RS", "free_rewrite", "perplexity_before"} <= set(result.metrics)
    first = result.rows[0].prompts[0]
    assert first.before is not None
    assert first.before.generated is not None
    assert first.after.generated is not None
    assert any("one paraphrase and one neighbour" in note for note in result.notes)
    assert {"before: scoring", "after: scoring", "reading held-out text"} <= set(told)
    assert "rows" not in json.loads(result.model_dump_json())


def test_without_generation_nothing_is_generated() -> None:
    tok = tokenizer("pieces")
    model = tiny.language_model("gpt2", len(tok))
    result = evaluate_edits(model, tok, EDITS, "zsre", generate=False, resamples=20)
    assert set(result.metrics) == {"efficacy", "paraphrase", "specificity", "score"}
    assert result.before is None
    assert result.rows[0].prompts[0].after.generated is None


def test_what_is_missing_is_said() -> None:
    tok = tokenizer("bytes")
    model = tiny.language_model("llama", len(tok))
    bare = [Edit("1", "Al", "Al speaks", 0, "English", "French")]
    result = evaluate_edits(model, tok, bare, "counterfact", generate=False, resamples=20)
    assert "no neighbours that can be scored: no NS, and so no S" in result.notes
    with pytest.raises(UsageError, match="no task 'cf'"):
        evaluate_edits(model, tok, bare, "cf")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no edits"):
        evaluate_edits(model, tok, [], "zsre")
    pictured = [Edit("1", "", "This is", None, "English", "French", image="a.png")]
    with pytest.raises(UsageError, match="has an image"):
        evaluate_edits(model, tok, pictured, "counterfact")
    with pytest.raises(DataError, match="there is none in 1 of 1 edits"):
        evaluate_edits(model, tok, [Edit("1", "Al", "Al is", 0, "x")], "counterfact")


@pytest.mark.parametrize("connector", ["mlp", "gated_cross_attention"])
def test_a_model_with_images_answers_text_like_its_language_model(
    compose_tiny: Callable[..., Any], connector: str
) -> None:
    model, processor = compose_tiny(connector)
    asked = [Question("what is one?", ("two", "seven is even")), Question("is it", ("red",))]
    whole = score(model, processor.tokenizer, asked)
    alone = score(model.language_model, processor.tokenizer, asked)
    for ours, theirs in zip(whole, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def write_edits(folder: Path) -> Path:
    rows = [
        {
            "case_id": number,
            "prompt": f"the {thing} is",
            "subject": thing,
            "target_new": "one",
            "ground_truth": "two",
            "rephrase_prompt": f"what is the {thing}?",
            "locality_prompt": "seven is",
            "locality_ground_truth": "two",
        }
        for number, thing in enumerate(["circle", "square", "digit"])
    ]
    path = folder / "edits.json"
    path.write_text(json.dumps(rows, indent=1))
    return path


def test_the_command_line(cli: Any, llm_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = llm_folder("llama")
    model, reader = open_model(folder)
    assert tokenizer_of(reader) is reader
    patch = tmp_path / "fix.safetensors"
    save_patch(patch_of(model, "model.layers.1.mlp.down_proj.weight"), patch)
    (tmp_path / "text.txt").write_text("the circle is red\n\nthe square is on the left\n")
    rows = tmp_path / "out" / "rows.jsonl"
    asked = ["eval", folder, "--task", "counterfact", "--edits", write_edits(tmp_path)]
    more = ["--patch", patch, "--text", tmp_path / "text.txt", "--out", rows]
    code, out, err = cli(*asked, *more, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert set(found["metrics"]["ES"]) >= {"value", "low", "high", "n", "protocol", "unit", "over"}
    assert found["metrics"]["S"]["n"] == 3
    assert found["before"]["ES"]["n"] == 3
    assert found["metrics"]["drift_kl"]["value"] > 0
    assert found["patches"] == ["fix"]
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["id"] for row in written] == ["0", "1", "2"]
    assert written[0]["source"].endswith("edits.json:2")
    code, out, _ = cli(*asked, "--task", "zsre", "--no-generate")
    assert code == 0
    assert "efficacy" in out
    assert "teacher-forced" in out
    assert "free" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "--edits with --task"),
        (["x.jsonl", "--edits", "e.json"], 2, "--edits needs a --task for edits"),
        (["x.jsonl", "--text", "t.txt"], 2, "--text needs a --task for edits"),
        (["--task", "counterfact"], 2, "needs --edits"),
        (["--task", "mcf", "--edits", "e.json"], 2, "for edits: counterfact, zsre"),
        (["x.jsonl", "--task", "zsre", "--edits", "e.json"], 2, "not as x.jsonl"),
        (["--task", "zsre", "--edits", "e.json", "--skip-broken", "1%"], 2, "--skip-broken"),
        (["--task", "zsre", "--edits", "none.json"], 3, "none.json: cannot be read"),
    ],
)
def test_wrong_combinations_are_refused(
    cli: Any, llm_folder: Callable[..., Path], arguments: list[str], code: int, said: str
) -> None:
    found, _, err = cli("eval", llm_folder("llama"), *arguments)
    assert found == code
    assert said in " ".join(err.split())
