"""A made-up but realistic comparison: twenty methods, one failed, six candidates."""

import base64
import io
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from modalign.comparison import published
from modalign.comparison.hallucination import YesNoQuestions, hallucination, measure
from modalign.comparison.recommendation import Cost, rank_by_validation, recommend
from modalign.comparison.results import (
    Comparison,
    CurvePoint,
    Example,
    MethodResult,
    ReferenceRow,
    SeedRun,
    Setting,
    Trial,
)
from modalign.comparison.what_if import what_if
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import compare_all
from modalign.numbers.trainings import estimate_mean, hierarchical_bootstrap

SKILLS = ("colour", "shape", "count", "position", "relation", "presence", "size", "text")
CHANCE = (0.17, 0.25, 0.2, 0.25, 0.25, 0.5, 0.33, 0.1)
# name, family, enters, tokens, trainable parameters, ability, MIR, serving
METHODS = (
    ("linear", "converter", "prefix", 64, 110_000, 1.25, 3.31, "native:Llava"),
    ("mlp", "converter", "prefix", 64, 440_000, 1.55, 3.12, "native:Llava"),
    ("fused_mlp", "converter", "prefix", 64, 2_300_000, 1.5, 3.2, "remote-code"),
    ("avgpool_mlp", "converter", "prefix", 16, 440_000, 1.5, 3.08, "remote-code"),
    ("pixel_shuffle_linear", "converter", "prefix", 16, 442_000, 1.42, 3.15, "native:Idefics3"),
    ("pixel_shuffle_mlp", "converter", "prefix", 16, 890_000, 1.38, 3.22, "remote-code"),
    ("ldp", "converter", "prefix", 16, 1_790_000, 1.2, 3.3, "remote-code"),
    ("ldpv2", "converter", "prefix", 16, 780_000, 1.28, 3.25, "remote-code"),
    ("c_abstractor", "converter", "prefix", 16, 4_300_000, 1.6, 3.1, "remote-code"),
    ("clipcap", "converter", "prefix", 10, 18_800_000, 0.2, 4.1, "remote-code"),
    ("clipcap_lowrank", "converter", "prefix", 10, 610_000, 0.15, 4.0, "remote-code"),
    ("raw_patches", "converter", "prefix", 64, 62_000, -0.1, 4.5, "remote-code"),
    ("resampler", "perceiver", "prefix", 16, 3_600_000, 0.55, 3.7, "native:Idefics2"),
    ("qformer", "perceiver", "prefix", 16, 6_900_000, 0.3, 3.6, "native:Blip2"),
    ("qformer_no_stage_one", "perceiver", "prefix", 16, 6_900_000, 0.85, 3.9, "native:Blip2"),
    ("d_abstractor", "perceiver", "prefix", 16, 5_200_000, 1.1, 3.4, "remote-code"),
    ("gated_cross_attention", "perceiver", "in-layer", 1, 8_100_000, 0.9, None, "remote-code"),
    ("llama_adapter", "converter", "in-layer", 1, 160_000, 0.1, None, "remote-code"),
    ("captions_as_text", "tool", "text", 48, 0, 0.35, None, "tools"),
    ("mlp+caption_first", "data", "prefix", 64, 440_000, 1.5, 3.05, "native:Llava"),
)
CANDIDATES = (
    "mlp",
    "c_abstractor",
    "avgpool_mlp",
    "mlp+caption_first",
    "resampler",
    "pixel_shuffle_linear",
)
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")


def _answers(rng, seeds, difficulty):
    """Method -> (S, n) right answers; the resampler is weak where things stand."""
    n = len(difficulty)
    skills = np.arange(n) % len(SKILLS)
    out = {}
    for name, _, _, _, _, ability, _, _ in METHODS:
        spatial = -0.8 if name in ("resampler", "qformer") else 0.0
        lean = np.where(np.isin(skills, (3, 4)), spatial, 0.0) + np.where(skills == 7, -1.2, 0.0)
        shift = rng.normal(0, 0.08, (seeds[name], 1))
        known = 1 / (1 + np.exp(-(ability + lean + difficulty + shift)))
        chance = np.array(CHANCE)[skills]
        out[name] = (rng.random((seeds[name], n)) < chance + (1 - chance) * known * 0.93) * 1.0
    return out


def _curve(rng, ability, untrained):
    samples = np.linspace(0, 6000, 25)
    floor = 1.5 - 0.55 * ability
    loss = floor + (untrained - floor) * np.exp(-samples / 1100) + rng.normal(0, 0.015, 25)
    return [
        CurvePoint(
            samples=int(s),
            seconds=s / 70,
            flops=s * 4e8,
            train_loss=float(v - 0.05),
            val_loss=float(v),
        )
        for s, v in zip(samples, loss, strict=True)
    ]


def _picture(rng):
    image = Image.new("RGB", (32, 32), (28, 30, 38))
    draw = ImageDraw.Draw(image)
    for left, top in ((3, 4), (18, 15)):
        colour = COLOURS[rng.integers(6)]
        box = (left, top, left + 10, top + 10)
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _examples(rng):
    names = [m[0] for m in METHODS if m[0] != "clipcap"]
    ability = {m[0]: m[5] for m in METHODS}
    examples = []
    for index in range(8):
        expected = COLOURS[index % 6]
        answers = {
            name: expected
            if rng.random() < 1 / (1 + np.exp(-ability[name]))
            else COLOURS[rng.integers(6)]
            for name in names
        }
        if index == 2:
            answers["raw_patches"] = '<script>alert("1")</script> & a very long answer ' * 3
        examples.append(
            Example(
                id=f"eval-{index}",
                image_png_base64=_picture(rng),
                question=f"What colour is the {'square' if index % 2 else 'circle'} on the left?",
                expected=expected,
                skill=SKILLS[index % 8],
                answers=answers,
                correct={name: answer == expected for name, answer in answers.items()},
            )
        )
    return examples


def _presence(groups):
    """The questions of presence: every other one is answered yes."""
    places = np.arange(SKILLS.index("presence"), len(groups), len(SKILLS))
    own = [groups[place] for place in places]
    return YesNoQuestions(places, np.arange(len(places)) % 2 == 0, own, ["presence"])


def _yes_no(correct, groups):
    asked = _presence(groups)
    answers = {"": correct[:, asked.places]}
    return measure(asked, answers, {"": np.where(asked.expected, answers[""], 1 - answers[""])})[""]


def _untrained(n):
    return Estimate(value=0.26, low=0.23, high=0.29, n=n)


def _method(row, rng, drawn, correct, blank, groups):
    name, family, enters, tokens, parameters, ability, mir, serving = row
    common = {
        "name": name,
        "family": family,
        "group": "direct mapping" if family == "converter" else "customised perceiver",
        "variant": "matched",
        "enters": enters,
        "papers": ["LLaVA (arXiv 2304.08485)"],
        "serving": serving,
        "gateway": enters == "prefix",
        "served_by": ["vLLM through the gateway", "modalign serve"][enters != "prefix" :],
        "tokens": tokens,
        "trainable_parameters": parameters,
        "trainable": {"connector": parameters, "llm": 0},
        "parameters": {"encoder": 5_700_000, "connector": parameters, "llm": 30_000_000},
    }
    if name == "clipcap":
        failure = "loss was not finite at step 41 with every learning rate tried"
        return MethodResult(**common, status="failed", failure=failure)
    per_item = 2 * 30e6 * (24 + tokens) + 2.0 * parameters * max(tokens, 4)
    seeds = []
    for seed, answers in enumerate(correct):
        seeds.append(
            SeedRun(
                seed=seed,
                accuracy=float(answers.mean()),
                val_loss=1.5 - 0.55 * ability,
                val_accuracy=float(answers.mean()) + 0.01,
                samples=6000,
                seconds=85 + tokens / 3,
                flops=per_item * 12_000,
                curve=_curve(rng, ability + rng.normal(0, 0.06), 3.4),
            )
        )
    skills = {skill: part.estimate(name) for skill, part in drawn.skills.items()}
    return MethodResult(
        **common,
        candidate=name in CANDIDATES,
        accuracy=drawn.observed[name],
        accuracy_interval=drawn.estimate(name),
        skills=skills,
        transfer=skills["size"],
        image_gain_blank=estimate_mean(correct - blank, groups=groups, resamples=300),
        image_gain_shuffled=estimate_mean(correct - blank * 0.95, groups=groups, resamples=300),
        hallucination=_yes_no(correct, groups),
        untrained_accuracy=_untrained(correct.shape[1]),
        flops=per_item * 12_000,
        inference_flops=per_item,
        seconds=85 + tokens / 3,
        peak_memory=int(6.1e8 + parameters * 16),
        time_to_first_answer=0.021 + tokens / 4000,
        mir=mir,
        diagnostics={"code perplexity": 41.7, "dead-code rate": 0.25} if name == "mlp" else {},
        learning_rate=1e-3,
        trials=[
            Trial(learning_rate=lr, samples=500, val_loss=loss, kept=lr == 1e-3)
            for lr, loss in ((3e-4, 2.1), (1e-3, 1.9), (3e-3, None))
        ],
        seeds=seeds,
    )


def _setting():
    return Setting(
        command="modalign compare --data starter --budget samples=6000 --seeds 3 --out report",
        version="0.1.0",
        started="2026-01-12T09:00:00Z",
        finished="2026-01-12T10:12:00Z",
        seconds=4320,
        budget="6000samples",
        llm="starter/llm (30 M)",
        encoder="starter/encoder (5.7 M)",
        llm_mode="full",
        encoder_mode="frozen",
        seeds=[0, 1, 2],
        device="cpu",
        dtype="float32",
        threads=2,
        train_records=20_000,
        val_records=800,
        eval_records=800,
        val_source="a tenth of the training data, grouped by image",
        hashes={"train.jsonl": "9f2c" * 16, "encoder": "04ab" * 16},
        libraries={"torch": "2.8.0", "transformers": "5.23.0", "modalign": "0.1.0"},
        changed={"budget.samples": "6000", "batch_size": "32"},
    )


@cache
def make_comparison(items=800):
    """Build it once; callers copy before they change anything."""
    rng = np.random.default_rng(20)
    groups = [f"image {i // 4}" for i in range(items)]
    skills = [SKILLS[i % 8] for i in range(items)]
    seeds = {row[0]: 3 if row[0] in CANDIDATES else 1 for row in METHODS}
    correct = _answers(rng, seeds, rng.normal(0, 0.8, items))
    validation = _answers(rng, seeds, rng.normal(0, 0.8, items))
    del correct["clipcap"], validation["clipcap"]
    blank = (rng.random(items) < 0.28) * 1.0
    drawn = hierarchical_bootstrap(correct, groups=groups, skills=skills)
    methods = [_method(row, rng, drawn, correct.get(row[0]), blank, groups) for row in METHODS]
    by_name = {m.name: m for m in methods}
    val_accuracy = {name: float(answers.mean()) for name, answers in validation.items()}
    for rank, name in enumerate(rank_by_validation(val_accuracy), start=1):
        by_name[name].rank, by_name[name].val_accuracy = rank, val_accuracy[name]
    costs = {
        name: Cost(
            m.trainable_parameters, m.tokens, m.flops, m.inference_flops, m.seconds, m.serving
        )
        for name, m in by_name.items()
        if m.status == "ok"
    }
    pairs = compare_all(correct, groups=groups)
    for name in CANDIDATES:
        by_name[name].candidate = True
    return Comparison(
        methods=methods,
        what_if=what_if(methods),
        recommendation=recommend({n: validation[n] for n in CANDIDATES}, costs, groups=groups),
        references=_references(items),
        differences=pairs,
        hallucination=_hallucination(correct, groups),
        contradictions=published.check(methods, pairs, "full"),
        examples=_examples(rng),
        setting=_setting(),
        notes=["The encoder is small and was trained on the same kind of scene."],
    )


def _hallucination(correct, groups):
    asked = _presence(groups)
    answers = {name: found[:, asked.places] for name, found in correct.items()}
    said_yes = {name: np.where(asked.expected, own, 1 - own) for name, own in answers.items()}
    return hallucination(asked, answers, said_yes, 1.0 - asked.expected)


def _references(items):
    rows = (("chance", 0.0), ("majority answer", 0.06), ("text only", 0.09))
    part = items // len(SKILLS)
    return [
        ReferenceRow(
            name=name,
            accuracy=Estimate(value=0.26 + add, low=0.24 + add, high=0.28 + add, n=items),
            skills={
                skill: Estimate(value=c + add, low=c + add - 0.02, high=c + add + 0.02, n=part)
                for skill, c in zip(SKILLS, CHANCE, strict=True)
            },
        )
        for name, add in rows
    ]
