"""How much faster are values found than in the plain way: one edit, the whole model, nothing skipped?

    python -m bench.editing [--out FILE] [--quick]

From one run on one CPU thread, it prints seconds per edit of PMET's values (paper settings) with the
plain code of the tests (``tests/editing/plain.py``) and with the engine, and how far apart the values
are. There are two models: ``../shared/models/editable_gptj`` (or, without it, the same shape trained by
``bench.editable``) with 32 edits; and GPT-J's shape with 85 M parameters in its layers, random weights,
with 8 edits (2 of them by the plain code). The targets are 6x and 4x.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.editing import plain

from bench.invented import counterfactuals, invent, write_documents
from modalign.editing.edits import Edit
from modalign.editing.engine.contexts import sample_contexts
from modalign.editing.engine.rewriting import Rewriter, Rewriting
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.engine.values import Value, optimise
from modalign.editing.methods import PMETConfig
from modalign.models.open import open_model

SHARED = Path(__file__).parents[2] / "shared" / "models" / "editable_gptj"


@dataclass(frozen=True)
class Timing:
    """One model's row.

    Attributes:
        model: what it is.
        edits: number of edits by the engine; ``plain_edits`` by the plain code.
        plain, fast: seconds per edit.
        ratio: plain / fast.
        median_error, worst_error: relative distance between the outputs wanted of FFN and attention.
        evaluations: mean per edit.
    """

    model: str
    edits: int
    plain_edits: int
    plain: float
    fast: float
    ratio: float
    median_error: float
    worst_error: float
    evaluations: float


def measure(
    name: str, model: Any, tokenizer: Any, edits: Sequence[Edit], plain_edits: int, layer: int
) -> Timing:
    """Time both ways on the same edits, contexts and settings."""
    spec = ModelSpec.detect(model)
    contexts = sample_contexts(spec, tokenizer)
    settings = PMETConfig().value_settings(relax=True)
    requests = Rewriter(spec, tokenizer, Rewriting()).requests(edits, contexts)
    found: dict[int, Value] = {}
    # Once beforehand, untimed, as the first pass through a model also sets up its kernels.
    optimise(
        spec, layer, ("attention", "ffn"), PMETConfig(steps=2).value_settings(relax=True),
        requests[:1], batch_size=1, done=lambda number, value: None,
    )  # fmt: skip
    began = time.perf_counter()
    optimise(
        spec, layer, ("attention", "ffn"), settings, requests, batch_size=16,
        done=found.__setitem__,
    )  # fmt: skip
    fast = (time.perf_counter() - began) / len(edits)
    began = time.perf_counter()
    theirs = [
        plain.plain_values(model, tokenizer, edit, contexts, layer=layer, settings=plain.PMET)
        for edit in edits[:plain_edits]
    ]
    slow = (time.perf_counter() - began) / plain_edits
    errors = [
        float((found[i].wanted(site) - values.goal(site)).norm() / values.goal(site).norm())
        for i, values in enumerate(theirs)
        for site in values.deltas
    ]
    return Timing(
        model=name,
        edits=len(edits),
        plain_edits=plain_edits,
        plain=slow,
        fast=fast,
        ratio=slow / fast,
        median_error=statistics.median(errors),
        worst_error=max(errors),
        evaluations=statistics.mean(value.steps for value in found.values()),
    )


def shared_edits(count: int) -> list[Edit]:
    """Make counterfactual edits of different subjects from the shared model's facts."""
    content = json.loads((SHARED / "facts.json").read_text(encoding="utf-8"))
    edits: dict[str, Edit] = {}
    for number, (subject, relation, truth) in enumerate(content["facts"]):
        if number % 4 != len(edits) % 4 or subject in edits:
            continue  # takes the four relations in turn
        templates, objects = content["rels"][relation]
        prompt = templates[0].replace("{}", subject)
        target = objects[(objects.index(truth) + 1) % len(objects)]
        edits[subject] = Edit(str(number), subject, prompt, prompt.index(subject), target, truth)
    return list(edits.values())[:count]


def small(quick: bool) -> Timing:
    """Time the 1.4 M parameter model whose facts can be edited."""
    model, tokenizer = open_model(SHARED)
    edits = shared_edits(4 if quick else 32)
    return measure("editable_gptj (1.4 M)", model, tokenizer, edits, len(edits), layer=3)


def large(quick: bool) -> Timing:
    """Time GPT-J's shape: 12 layers of width 768."""
    world = invent(names=24, relations=4, objects=8, seed=0)
    from bench.editable import train_tokenizer

    texts = [document.text for document in write_documents(world, 400, 60, seed=0)]
    tokenizer = train_tokenizer(texts, 900)
    torch.manual_seed(0)
    config = transformers.GPTJConfig(
        vocab_size=len(tokenizer), n_embd=768, n_layer=12, n_head=12, rotary_dim=64,
        n_positions=256, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPTJForCausalLM(config).eval()
    edits = counterfactuals(world, 2 if quick else 8, seed=0)
    return measure("GPT-J shape (85 M)", model, tokenizer, edits, 1 if quick else 2, layer=4)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--quick", action="store_true", help="few edits: only that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for run in (small, large):
        if run is small and not SHARED.is_dir():
            print(f"{SHARED.name} is not there: left out")
            continue
        row = run(options.quick)
        rows.append(row)
        print(
            f"{row.model}: plain {row.plain:.3f} s, fast {row.fast:.3f} s per edit, "
            f"{row.ratio:.1f}x; values apart by {row.median_error:.1e} (median), "
            f"{row.worst_error:.1e} (worst); {row.evaluations:.1f} evaluations",
            flush=True,
        )
    if options.out:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
