"""Processors of native classes whose own would change prompts: training's ids, the class's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForMultimodalLM, AutoProcessor

import natively
import tiny
from every_modality import sound
from modalign.evaluation.generation import answer_records
from modalign.evaluation.likelihood import score_options
from modalign.models import probe
from modalign.models.export import save_model
from modalign.models.export.native import build_native
from modalign.models.open import open_model

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return natively.idefics(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def folders(seeing: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("saved")
    save_model(*seeing, root / "Idefics")
    save_model(*natively.voxtral(tmp_path_factory.mktemp("whisper")), root / "Voxtral")
    return {name: root / name for name in ("Idefics", "Voxtral")}


@pytest.mark.parametrize("name", ["Idefics", "Voxtral"])
def test_the_model_is_trusted_with_nothing_and_the_processor_asks(
    name: str, folders: dict[str, Path]
) -> None:
    model = AutoModelForMultimodalLM.from_pretrained(folders[name], trust_remote_code=False)
    assert type(model).__module__.startswith("transformers.")
    with pytest.raises(ValueError, match="custom code"):
        AutoProcessor.from_pretrained(folders[name], trust_remote_code=False)
    card = (folders[name] / "README.md").read_text()
    assert f"transformers' own {name} class; its processor is" in card
    assert card.count("trust_remote_code=True)") == 1  # the processor's line; the model's has none
    assert "AutoModelForMultimodalLM" in card or name == "Idefics"


def idefics_inputs(seeing: Any, texts: list[str], pictures: list[int], **options: Any) -> Any:
    native = build_native(*seeing)
    images = [tiny.picture(seed, 50) for seed in pictures]
    return native.processor(images=images or None, text=texts, **options)


def test_each_position_reads_the_last_image_before_it(seeing: Any) -> None:
    texts = ["a<image>b<image>c", "hi", "<image>d"]
    made = idefics_inputs(seeing, texts, [0, 1, 2], padding=True, padding_side="left")
    mark = seeing[1].image_token_id
    ids, read = made["input_ids"], made["image_attention_mask"]
    assert read.shape == (*ids.shape, 2)
    for row in range(3):
        places = (ids[row] == mark).nonzero()[:, 0].tolist()
        for position in range(ids.shape[1]):
            before = sum(place <= position for place in places)
            wanted = [int(before == number) for number in (1, 2)]
            assert read[row, position].tolist() == wanted
    plain = seeing[1](
        images=[tiny.picture(seed, 50) for seed in (0, 1, 2)],
        text=texts,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    assert torch.equal(plain["input_ids"], ids)
    rows = made["pixel_values"]
    assert rows.shape == (3, 2, 3, tiny.SIDE, tiny.SIDE)
    assert torch.equal(torch.cat([rows[0], rows[2, :1]]), plain["pixel_values"])
    assert not rows[1].any()
    assert not rows[2, 1].any()


def test_a_text_alone_gets_an_image_that_nothing_reads(seeing: Any) -> None:
    made = idefics_inputs(seeing, ["hi"], [])
    assert made["pixel_values"].shape == (1, 1, 3, tiny.SIDE, tiny.SIDE)
    assert not made["image_attention_mask"].any()


def test_what_idefics_cannot_be_given_is_refused(seeing: Any) -> None:
    with pytest.raises(ValueError, match="PyTorch's tensors: return_tensors is 'np'"):
        idefics_inputs(seeing, ["hi"], [], return_tensors="np")
    native = build_native(*seeing)
    mark = seeing[1].image_token_id
    with pytest.raises(ValueError, match="2 <image> placeholders for 1 images"):
        native.processor.beside(torch.tensor([[mark, mark]]), torch.zeros(1, 3, 2, 2))


def test_voxtral_reads_sound_by_its_name(folders: dict[str, Path]) -> None:
    _, processor = open_model(folders["Voxtral"])
    talk = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert set(probe.prepare(processor, [talk])) == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match="takes no images"):
        processor(images=[tiny.picture(0)], text="a")


def test_options_are_scored_as_by_the_composed_model(seeing: Any, folders: dict[str, Path]) -> None:
    """An answer behind a prompt reads what the prompt's last position reads."""
    asked = [tiny.record([tiny.image(0), " or ", tiny.image(1), "?"], "yes")]
    options = [("yes", "no, it is not")]
    (expected,) = score_options(*seeing, asked, options)
    (found,) = score_options(*open_model(folders["Idefics"]), asked, options)
    for ours, theirs in zip(expected, found, strict=True):
        assert theirs.loglikelihood == pytest.approx(ours.loglikelihood, abs=1e-4)
    other = [tiny.record([tiny.image(0), " or ", tiny.image(2), "?"], "yes")]
    (changed,) = score_options(*seeing, other, options)
    assert abs(changed[0].loglikelihood - expected[0].loglikelihood) > 1e-3


def test_sound_and_text_in_one_batch(folders: dict[str, Path]) -> None:
    """Left padding: each row answers as alone."""
    model, processor = open_model(folders["Voxtral"])
    asked = [
        tiny.record([sound(0.5, 1), "what is it?"]),
        tiny.record("hi"),
        tiny.record([sound(1.5, 2), " and ", sound(0.1, 3)]),
    ]
    together = answer_records(model, processor, asked, 6)
    assert together == [answer_records(model, processor, [each], 6)[0] for each in asked]
    assert len(set(together)) == 3
