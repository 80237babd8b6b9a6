"""Whole diagnoses of tiny models: what is defined where, and that figures are those of other rooms."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import natively
import tiny
from every_modality import composed, record, sound
from modalign.data.readers import read_records
from modalign.data.records import Media, Record
from modalign.data.supervision import tokenise
from modalign.errors import DataError, UsageError
from modalign.evaluation.diagnosis import diagnose as module
from modalign.evaluation.diagnosis.diagnose import diagnose
from modalign.evaluation.diagnosis.mir import modality_integration_rate
from modalign.evaluation.diagnosis.page import diagnosis_report, sentences
from modalign.evaluation.diagnosis.reading import ObservedModel
from modalign.evaluation.diagnosis.results import DIAGNOSTICS, Diagnosis, ModalityDiagnosis
from modalign.evaluation.scoring import score
from modalign.models.compose import compose, load_language_model
from modalign.models.encoders.image import load_image_encoder
from modalign.models.encoders.loading import load_encoder
from modalign.models.export import save_model
from modalign.models.open import open_model
from modalign.pages.markdown import escape
from modalign.patches import save_patch
from patches.made_patches import FFN, patch_for

CPU = torch.device("cpu")
NAMES = [
    "image_gain",
    "modality_gap",
    "norm_ratio",
    "mir",
    "encoder_similarity",
    "connector_similarity",
    "logit_lens",
    "attention_mass",
]
# A template as image-text models on the hub have them: contents are lists, nothing is marked.
LISTS = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass
class Looked:
    """A saved model and what was found in it."""

    folder: Path
    found: Diagnosis

    @property
    def image(self) -> ModalityDiagnosis:
        return self.found.modalities[0]


@pytest.fixture(scope="module")
def looked(
    compose_tiny: Callable[..., Any], small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Looked]:
    """Connector -> its model, saved, and the diagnosis on the small data."""
    made: dict[str, Looked] = {}

    def make(name: str) -> Looked:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "model"
            save_model(*compose_tiny(name), folder)
            made[name] = Looked(folder, diagnose(folder, str(small_data / "data.jsonl")))
        return made[name]

    return make


@pytest.mark.parametrize("name", ["mlp", "resampler", "gated_cross_attention"])
def test_what_is_defined(name: str, looked: Callable[[str], Looked]) -> None:
    found = looked(name).image
    assert sorted(each.name for each in found.diagnostics) == sorted(NAMES)
    for each in found.diagnostics:
        in_layer = name == "gated_cross_attention" and "in_layer" in DIAGNOSTICS[each.name]
        assert bool(each.undefined) == in_layer
        assert bool(each.figures) != in_layer
        for figure in [*each.figures.values(), *(f for c in each.curves.values() for f in c)]:
            assert np.isfinite(figure.value)
            assert figure.n == 18
            assert figure.low is None or np.isnan(figure.low) or figure.low <= figure.value + 1e-9
            assert (
                figure.high is None or np.isnan(figure.high) or figure.value <= figure.high + 1e-9
            )
    if name != "gated_cross_attention":
        assert len(found.diagnostic("mir").curves["Frechet distance"]) == tiny.LAYERS + 1
        assert len(found.diagnostic("attention_mass").curves["attention mass"]) == tiny.LAYERS
        assert len(found.diagnostic("logit_lens").words) == tiny.LAYERS + 1


def test_it_is_the_same_again_and_survives_json(
    looked: Callable[[str], Looked], small_data: Path
) -> None:
    first = looked("resampler")
    again = diagnose(first.folder, str(small_data / "data.jsonl"))
    assert again.model_copy(update={"seconds": 0}) == first.found.model_copy(update={"seconds": 0})
    assert Diagnosis.model_validate_json(first.found.model_dump_json()) == first.found
    assert "NaN" not in first.found.model_dump_json()


def test_accuracies_and_mir_are_those_of_a_comparison(
    looked: Callable[[str], Looked], small_data: Path
) -> None:
    """By the processor and one by one, or by the collator in batches: the same figures."""
    seen = looked("resampler")
    model, processor = open_model(seen.folder)
    records = [r for r in read_records(str(small_data / "data.jsonl")).records if any(r.media())]
    samples = [tokenise(r, processor.tokenizer) for r in records]
    collator = tiny.collator(model, processor)
    scores = score(model, samples, collator, CPU)
    gain = seen.image.diagnostic("image_gain").figures
    assert gain["accuracy, right image"].value == pytest.approx(scores.correct.mean())
    rate = modality_integration_rate(model, samples, collator, CPU)
    assert seen.image.diagnostic("mir").figures["MIR"].value == pytest.approx(rate, abs=1e-4)


@pytest.mark.parametrize("name", ["mlp", "resampler", "gated_cross_attention"])
def test_what_is_read_is_what_the_model_computes(
    name: str, looked: Callable[[str], Looked]
) -> None:
    model, processor = open_model(looked(name).folder)
    subject = ObservedModel(model, processor)
    given = subject.given(tiny.record([tiny.image(3), "what is it?", tiny.image(4)], "seven"))
    seen = subject.look(given)
    pixels = given.inputs["pixel_values"]
    with torch.no_grad():
        output = model(**given.inputs)
        if name == "mlp":  # Llava
            outputs = torch.cat(list(model.get_image_features(pixels).pooler_output))
            layer = model.config.vision_feature_layer
            states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
            features = states[layer].flatten(0, 1)
        else:
            encoded = model.encoded(None, pixel_values=pixels)
            outputs, mask = model.connect("image", encoded["image"])
            outputs, features = outputs[mask], encoded["image"].values.flatten(0, 1)
    assert tiny.largest_difference(seen.features["image"], features) < 1e-5
    assert tiny.largest_difference(seen.outputs["image"], outputs) < 1e-5
    answer = slice(given.start - 1, given.start - 1 + len(given.answer))
    assert tiny.largest_difference(seen.logits, output.logits[0, answer]) < 1e-4
    assert processor.tokenizer.decode(given.answer).startswith("seven")
    assert seen.attentions is not None
    assert len(seen.attentions) == tiny.LAYERS
    assert bool(seen.places) == (name != "gated_cross_attention")


def test_a_model_that_cannot_see_gains_nothing(
    compose_tiny: Callable[..., Any], small_data: Path, tmp_path: Path
) -> None:
    """With a connector of zeros every medium is the same: no gain, no divergence, and it is said."""
    model, processor = compose_tiny("mlp")
    with torch.no_grad():
        for parameter in model.connectors.parameters():
            parameter.zero_()
    save_model(model, processor, tmp_path / "blind")
    found = diagnose(tmp_path / "blind", str(small_data / "data.jsonl")).modalities[0]
    figures = found.diagnostic("image_gain").figures
    for name in ("blank", "shuffled", "noise"):
        assert figures[f"gain over {name}"].value == 0
        assert figures[f"KL from {name}"].value == pytest.approx(0, abs=1e-9)
    assert any("no use of the medium" in sentence for sentence in sentences(found))
    assert found.diagnostic("norm_ratio").figures["ratio"].value == 0


def test_a_foreign_template_of_lists(looked: Callable[[str], Looked], tmp_path: Path) -> None:
    model, processor = open_model(looked("mlp").folder)
    processor.chat_template = LISTS
    given = ObservedModel(model, processor).given(tiny.record([tiny.image(0), "what?"], "seven"))
    said = processor.tokenizer.decode(given.ids)
    assert processor.tokenizer.decode(given.answer).strip() == "seven"
    assert said.strip().endswith("assistant: seven")


def test_every_modality_of_one_model(llm_folder: Callable[..., Path]) -> None:
    model, processor, _ = composed(str(llm_folder()))
    subject = ObservedModel(model, processor)
    records = [record("image", "audio", "table", "vectors", "series", row=n) for n in range(5)]
    for modality in ("audio", "table", "vectors", "series"):
        found = module._modality(subject, modality, records, 0, None)
        assert found.enters == ("in-layer" if modality == "table" else "prefix")
        gain = found.diagnostic("image_gain")
        assert ("accuracy, noise" in gain.figures) == (modality != "table")
        assert gain.figures["KL from blank"].value > 0
        assert found.diagnostic("encoder_similarity").undefined  # five media are too few


def test_with_a_patch(looked: Callable[[str], Looked], small_data: Path, tmp_path: Path) -> None:
    before = looked("resampler")
    file = tmp_path / "fix.safetensors"
    name = f"language_model.{FFN['llama'].format(1)}"
    save_patch(patch_for(open_model(before.folder)[0], [name]), file)
    found = diagnose(before.folder, str(small_data / "data.jsonl"), patches=[file])
    assert len(found.patches) == 1
    image = found.modalities[0]
    assert not image.diagnostic("attention_mass").undefined
    own = before.image.diagnostic
    assert image.diagnostic("modality_gap") == own("modality_gap")  # an edit of the LLM's layers
    assert image.diagnostic("mir") != own("mir")


def test_the_report_is_whole(looked: Callable[[str], Looked]) -> None:
    for name in ("mlp", "gated_cross_attention"):
        seen = looked(name)
        report = diagnosis_report(seen.found)
        whole, text = report.html(), report.markdown()
        for each in seen.image.diagnostics:
            assert f">{each.title}</h2>" in whole
            assert each.undefined is None or "Not defined" in text
            for figure in each.figures:
                assert f"| {escape(figure)} |" in text
        labels = re.findall(r'role="region" aria-label="([^"]*)"', whole)
        assert len(labels) == len(set(labels))
        assert whole.count('class="chart"') == (12 if name == "mlp" else 6)


def test_errors_say_what_is_missing(
    looked: Callable[[str], Looked],
    llm_folder: Callable[..., Path],
    small_data: Path,
    tmp_path: Path,
) -> None:
    data = str(small_data / "data.jsonl")
    with pytest.raises(UsageError, match="takes no media"):
        diagnose(llm_folder(), data)
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    texts = [row for row in rows if len(row["messages"][0]["content"]) == 1]
    tiny.write_jsonl(tmp_path / "texts.jsonl", texts)
    with pytest.raises(DataError, match=r"6 records, 0 with image"):
        diagnose(looked("mlp").folder, str(tmp_path / "texts.jsonl"))
    with pytest.raises(UsageError, match="no such folder"):
        diagnose(tmp_path / "gone", data)


def test_the_command_line(
    looked: Callable[[str], Looked], small_data: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    arguments = ("diagnose", looked("mlp").folder, small_data / "data.jsonl", "--limit", 6)
    code, out, _ = cli(*arguments, "--out", tmp_path / "deep" / "out")
    assert code == 0
    assert "Does it look?" in out
    values = json.loads((tmp_path / "deep" / "out" / "report.json").read_text())
    assert values["modalities"][0]["records"] == 6
    assert values["command"].startswith("modalign diagnose ")
    assert 'class="chart"' in (tmp_path / "deep" / "out" / "report.html").read_text()
    code, out, _ = cli(*arguments, "--json")
    assert code == 0
    assert json.loads(out)["available"] == 18
    code, out, _ = cli("diagnose", tmp_path / "gone", small_data / "data.jsonl", "--json")
    assert code == 2
    assert "no such folder" in json.loads(out)["error"]


SOUND = {"Qwen2Audio": "qwen2_audio", "Voxtral": "voxtral"}


def saved_natively(kind: str, folder: Path, tower: Path, whisper: Path, llm: Path) -> list[Record]:
    """A tiny model as another class of transformers, and records about its media."""
    if kind in SOUND:
        whisper.mkdir()
        natively.whisper(whisper)
        encoder = load_encoder("audio", str(whisper), [], {"form": SOUND[kind]})
        parts = load_language_model(str(llm), modalities=("audio",))
        media: list[Media] = [sound(0.4 + 0.1 * (n % 5), n) for n in range(14)]
    else:
        encoder = load_image_encoder(str(tower), layer="output")
        parts = load_language_model(str(llm))
        media = [tiny.image(n) for n in range(14)]
    connector = {
        "Idefics3": "pixel_shuffle_linear",
        "Idefics2": "swiglu_resampler",
        "Voxtral": "stack_mlp",
    }.get(kind, "linear")
    torch.manual_seed(0)
    model, processor = compose(parts, encoder, connector)
    assert save_model(model.eval(), processor, folder, target=kind).kind == f"native:{kind}"
    answers = ("yes", "no", "seven")
    return [
        tiny.record([medium, "what is it?"], answers[row % 3], row=row)
        for row, medium in enumerate(media)
    ]


@pytest.mark.parametrize("kind", ["Idefics3", "Idefics2", *SOUND])
def test_other_classes_of_transformers(
    kind: str, tower_folder: Callable[..., Path], llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    records = saved_natively(
        kind, tmp_path / "model", tower_folder(), tmp_path / "whisper", llm_folder()
    )
    subject = ObservedModel(*open_model(tmp_path / "model"))
    (modality,) = subject.modalities
    seen = subject.look(subject.given(records[0]))
    assert len(seen.outputs[modality]) == len(seen.places[modality])
    if kind == "Qwen2Audio":  # 0.4 of the window's 2 seconds: the rest is padding
        assert len(seen.features["audio"]) == 10
        assert len(seen.outputs["audio"]) == 10
    elif kind == "Voxtral":  # the whole window
        assert len(seen.features["audio"]) == 100
        assert len(seen.outputs["audio"]) == 25
    else:
        assert len(seen.features["image"]) == tiny.PATCHES
    found = module._modality(subject, modality, records, 0, None)
    assert [each.name for each in found.diagnostics if each.undefined] == []
    noise = "accuracy, noise" in found.diagnostic("image_gain").figures
    assert noise == (kind not in SOUND)
    assert noise != any("Noise" in note for note in found.diagnostic("image_gain").notes)
