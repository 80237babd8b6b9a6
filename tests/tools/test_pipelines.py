"""Transformers pipelines as tools: tiny models with random weights, saved in folders."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerFast

import tiny
from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.tools.base import Tool
from modalign.tools.build import build_tool
from modalign.tools.guard import call_safely
from modalign.tools.spec import LayoutSpec, PipelineSpec

SIZE = {"height": 32, "width": 32}
SMALL = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "tree"}, "label2id": {"cat": 0, "dog": 1, "tree": 2}}


def save(folder: Path, model: Any, *others: Any) -> Path:
    for part in (model, *others):
        part.save_pretrained(folder)
    return folder


def tool(task: str, folder: Path, **fields: Any) -> Tool:
    return build_tool(PipelineSpec(task=task, model=str(folder), **fields))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    config = transformers.ViTConfig(**SMALL, **NAMES, image_size=32)
    model = transformers.ViTForImageClassification(config)
    return save(tmp_path / "vit", model, transformers.ViTImageProcessorPil(size=SIZE))


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    config = transformers.YolosConfig(**SMALL, **NAMES, image_size=[32, 32], num_detection_tokens=3)
    model = transformers.YolosForObjectDetection(config)
    return save(tmp_path / "yolos", model, transformers.YolosImageProcessorPil(size=SIZE))


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that puts BERT's marks around a text."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "top", "left", "total", "cat", "dog"]
    vocabulary = {name: number for number, name in enumerate(names)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        eos_token="[SEP]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )


def test_labels_and_scores_are_the_models(classifier: Path) -> None:
    one = tool("image-classification", classifier, options={"top_k": 2})
    medium = tiny.image(1)
    lines = call_safely(one, medium).lines
    model = transformers.AutoModelForImageClassification.from_pretrained(classifier)
    processor = transformers.AutoImageProcessor.from_pretrained(classifier)
    with torch.no_grad():
        chances = model(**processor(tiny.picture(1), return_tensors="pt")).logits.softmax(-1)[0]
    best = chances.topk(2)
    assert [line.text for line in lines] == [NAMES["id2label"][int(i)] for i in best.indices]
    assert [line.score for line in lines] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert one.parameters == sum(part.numel() for part in model.parameters())
    assert one.modalities == ("image",)


def test_detections_have_boxes_that_a_layout_reads(detector: Path) -> None:
    medium = tiny.image(1)
    one = tool("object-detection", detector, options={"threshold": 0.0})
    lines = call_safely(one, medium).lines
    assert len(lines) == 3
    assert all(line.box is not None and line.text in NAMES["label2id"] for line in lines)
    of = PipelineSpec(task="object-detection", model=str(detector), options={"threshold": 0.0})
    places = call_safely(build_tool(LayoutSpec(of=of, say=("places",))), medium).lines
    assert sorted(line.text.split()[-1] for line in places) == sorted(line.text for line in lines)


def test_a_recording_is_written_down(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    letters = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "B": 6}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    config = transformers.Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=24, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, conv_dim=(16, 16), conv_kernel=(10, 8), conv_stride=(10, 8),
        num_feat_extract_layers=2, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )  # fmt: skip
    folder = save(
        tmp_path / "wav2vec2",
        transformers.Wav2Vec2ForCTC(config),
        transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
        transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000),
    )
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-9000, 9000, 8000, np.int16).tobytes())
    outcome = call_safely(
        tool("automatic-speech-recognition", folder), Media("audio", data=buffer.getvalue())
    )
    assert outcome.problem is None
    assert isinstance(outcome.result, dict)
    assert set(outcome.result["text"]) <= set("AB <>sunk/")


def test_a_captioner_goes_on_from_a_prompt(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    vision = {**SMALL, "image_size": 32}
    text = {
        "vocab_size": len(words), "hidden_size": 24, "encoder_hidden_size": 24,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 64, "bos_token_id": 1, "sep_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = transformers.BlipConfig(text_config=text, vision_config=vision)
    processor = transformers.BlipProcessor(transformers.BlipImageProcessorPil(size=SIZE), words)
    folder = save(tmp_path / "blip", transformers.BlipForConditionalGeneration(config), processor)
    one = tool("image-to-text", folder, options={"max_new_tokens": 4})
    assert one.name == "image_text_to_text"
    for arguments in ({}, {"prompt": "top left"}):
        outcome = call_safely(one, tiny.image(0), **arguments)
        assert outcome.problem is None, outcome.message
        assert outcome.result[0].keys() >= {"generated_text"}  # type: ignore[index, union-attr]


def test_a_document_is_asked(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    donut = transformers.DonutSwinConfig(
        image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    text = transformers.MBartConfig(
        vocab_size=len(words), d_model=24, decoder_layers=1, decoder_attention_heads=2,
        decoder_ffn_dim=32, max_position_embeddings=512, is_decoder=True, add_cross_attention=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = transformers.VisionEncoderDecoderModel(
        encoder=transformers.DonutSwinModel(donut), decoder=transformers.MBartForCausalLM(text)
    )
    processor = transformers.DonutImageProcessorPil(size=SIZE)
    folder = save(tmp_path / "donut", model, processor, words)
    one = tool("document-question-answering", folder)
    assert one.signature.required == ("question",)
    assert call_safely(one, tiny.image(0)).problem == "arguments"
    outcome = call_safely(one, tiny.image(0), question="what is the total?")
    assert outcome.problem is None, outcome.message


def test_another_weight_is_another_tool(classifier: Path) -> None:
    def hashed(path: Path) -> str:
        return path.read_bytes().hex()

    before = tool("image-classification", classifier).fingerprint(hashed)
    assert before == tool("image-classification", classifier).fingerprint(hashed)
    model = transformers.AutoModelForImageClassification.from_pretrained(classifier)
    with torch.no_grad():
        model.classifier.bias.add_(1)
    model.save_pretrained(classifier)
    assert before != tool("image-classification", classifier).fingerprint(hashed)


def test_a_broken_picture_is_an_outcome(classifier: Path) -> None:
    outcome = call_safely(tool("image-classification", classifier), Media("image", data=b"no"))
    assert outcome.problem == "raised"
    assert "not an image" in outcome.message


def test_a_broken_model_is_an_outcome(classifier: Path) -> None:
    (classifier / "model.safetensors").unlink()
    outcome = call_safely(tool("image-classification", classifier), tiny.image(0))
    assert outcome.problem == "raised"


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        (
            "fill-mask",
            "x",
            "the pipeline 'fill-mask' is not supported as a tool; choose from audio-class",
        ),
        ("object-detection", "no/such-model", "no/such-model is not a folder here, and the hub"),
    ],
)
def test_what_cannot_be_used_is_refused(
    task: str, model: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=message):
        build_tool(PipelineSpec(task=task, model=model))
