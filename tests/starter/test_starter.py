"""The starter's files: the data set, the two shipped models, and pretraining them again."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    SiglipVisionModel,
)

from compared import read_rows
from modalign.starter import build, language, vision
from modalign.starter.build import WEIGHTS, write_data
from modalign.starter.scenes import (
    TRAINED_SKILLS,
    TRANSFER_SKILL,
    draw_for_skill,
    draw_scene,
    render,
)
from modalign.starter.vision import cell_means


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_weights_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*")) <= 5e6
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS / "language")
    assert 0.3e6 < model.num_parameters() < 0.5e6


@pytest.mark.parametrize("skill", [*TRAINED_SKILLS, TRANSFER_SKILL])
def test_the_language_model_answers_about_scenes_in_words(skill):
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS / "language")
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "language")
    rng, right = np.random.default_rng(99), []
    for _ in range(60):
        scene, question = draw_for_skill(rng, "eval", skill)
        asked = {"role": "user", "content": f"{scene.describe()} {question.text}"}
        told = [asked, {"role": "assistant", "content": question.answer}]
        start = tokenizer.apply_chat_template(
            [asked], add_generation_prompt=True, return_dict=False
        )
        ids = torch.tensor([tokenizer.apply_chat_template(told, return_dict=False)])
        with torch.inference_mode():
            guessed = model(ids).logits[0, len(start) - 1 : -1].argmax(-1)
        right.append(bool((guessed == ids[0, len(start) :]).all()))
    assert np.mean(right) >= 0.97


def features(split: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean feature and digit (10: empty) of every cell of some scenes."""
    model = SiglipVisionModel.from_pretrained(WEIGHTS / "vision").eval()
    processor = AutoImageProcessor.from_pretrained(WEIGHTS / "vision")
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng, split) for _ in range(count)]  # type: ignore[arg-type]
    pixels = processor(images=[render(s, rng) for s in scenes], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        means = cell_means(model(pixel_values=pixels).last_hidden_state).flatten(0, 1).numpy()
    return means, np.array([10 if d is None else d for scene in scenes for d in scene.cells])


def test_the_encoder_shows_digits_to_a_linear_probe():
    probe = LogisticRegression(max_iter=500).fit(*features("train", 500, 0))
    means, digits = features("eval", 300, 1)
    shown = digits < 10
    assert probe.score(means[shown], digits[shown]) >= 0.95
    assert probe.score(means[~shown], digits[~shown]) >= 0.99


def test_building_again_is_deterministic_and_loads(tmp_path, monkeypatch, cli):
    real = {"language": language.pretrain, "vision": vision.pretrain}
    for name, module in (("language", language), ("vision", vision)):
        monkeypatch.setattr(module, "STEPS", 2)
        pretrain = real[name]
        monkeypatch.setattr(
            module, "pretrain", lambda out, pretrain=pretrain, **k: pretrain(out, 2, **k)
        )
    monkeypatch.setattr(vision, "BATCH", 8)
    assert cli("starter", "build", "--out", tmp_path / "one")[0] == 0
    assert cli("starter", "build", "--out", tmp_path / "one")[0] == 2
    assert cli("starter", "build")[0] == 2  # the shipped weights
    build.build_models(tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    AutoModelForCausalLM.from_pretrained(tmp_path / "one" / "language")
    AutoTokenizer.from_pretrained(tmp_path / "one" / "language")
    SiglipVisionModel.from_pretrained(tmp_path / "one" / "vision")


def test_data_is_deterministic(tmp_path):
    few = {"train": 12, "val": 5, "eval": 8}
    write_data(tmp_path / "one", few)
    write_data(tmp_path / "two", few)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_the_transfer_skill_is_in_evaluation_data_only(scenes_folder):
    skills = {s: Counter(r["skill"] for r in read_rows(scenes_folder / f"{s}.jsonl")) for s in
              ("train", "val", "eval")}  # fmt: skip
    assert skills["eval"][TRANSFER_SKILL] > 0
    assert TRANSFER_SKILL not in skills["train"] | skills["val"]
    assert set(TRAINED_SKILLS) <= skills["train"].keys()
    assert {"caption", "text"} <= skills["train"].keys()
    for split in skills:
        ids = [row["id"] for row in read_rows(scenes_folder / f"{split}.jsonl")]
        assert len(ids) == len(set(ids))
