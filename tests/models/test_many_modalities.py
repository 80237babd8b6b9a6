"""Several modalities in one record, records that lack some, one model for all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiny
from every_modality import OPTIONS, composed, encoders, medium, record
from modalign.connectors.frames import PerFrame
from modalign.connectors.registry import connector_class, connectors
from modalign.data.modalities import blank_like, check_medium, modality_names
from modalign.data.records import mark
from modalign.data.supervision import tokenise
from modalign.evaluation.evaluate import evaluate_model
from modalign.models.export import save_model

LLM = Callable[..., Path]
RECORDS = [
    record(*modality_names(), row=1),
    record("audio", row=2),
    record(row=3),  # text alone
    record("video", "table", row=4),
    record("vectors", "series", "vectors", row=5),
    record(*reversed(modality_names()), row=6),
]


@pytest.fixture(scope="module")
def model(llm_folder: LLM) -> tuple[Any, Any, Any]:
    return composed(str(llm_folder("llama")))


def losses(model: Any, collator: Any, samples: list[Any]) -> list[float]:
    """Loss of every sample."""
    batch = collator(samples)
    with torch.no_grad():
        logits = model(**batch.model_inputs(), use_cache=False).logits
    each = functional.cross_entropy(logits, batch.targets, reduction="none")
    return [float(each[batch.owner == i].sum()) for i in range(len(samples))]


def test_every_modality_alone_and_together(model: tuple[Any, Any, Any]) -> None:
    """Mixed, single-modality and text-only records in one batch: each gives what it gives alone."""
    joined, processor, collator = model
    samples = [tokenise(r, processor.tokenizer) for r in RECORDS]
    alone = [losses(joined, collator, [sample])[0] for sample in samples]
    assert losses(joined, collator, samples) == pytest.approx(alone, rel=1e-4, abs=1e-4)
    assert losses(joined, collator, samples[::-1]) == pytest.approx(alone[::-1], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("modality", modality_names())
def test_every_modality_is_read(modality: str, model: tuple[Any, Any, Any]) -> None:
    """Another medium of one modality changes the answer to a record that holds all six."""
    joined, processor, collator = model
    first = tokenise(record(*modality_names(), row=1, seed=2), processor.tokenizer)
    other = list(first.media)
    place = [m.modality for m in other].index(modality)
    other[place] = blank_like(other[place]) if modality != "video" else medium("video", 3)
    changed = type(first)(**{**vars_of(first), "media": tuple(other)})
    assert abs(losses(joined, collator, [first])[0] - losses(joined, collator, [changed])[0]) > 1e-5


def vars_of(sample: Any) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in sample.__dataclass_fields__}


def test_placeholders_are_the_tokens_of_each_connector(model: tuple[Any, Any, Any]) -> None:
    joined, processor, collator = model
    sample = tokenise(RECORDS[0], processor.tokenizer)
    batch = collator([sample])
    for encoder in encoders():
        token = processor.tokenizer.convert_tokens_to_ids(mark(encoder.modality))
        count = encoder.prepare([m for m in sample.media if m.modality == encoder.modality]).counts
        connector = joined.connector(encoder.modality)
        expected = max(connector.num_tokens(count[0]), 1)
        assert int((batch.input_ids == token).sum()) == expected, encoder.modality


def test_tokens_stand_where_their_medium_stood(model: tuple[Any, Any, Any]) -> None:
    """Against embeddings put together by hand, in reading order."""
    joined, processor, collator = model
    sample = tokenise(record("series", "video", "series", row=7), processor.tokenizer)
    batch = collator([sample])
    own = {e.modality: e for e in encoders(("video", "series"))}
    embeds = joined.get_input_embeddings()(batch.input_ids).clone()
    with torch.no_grad():
        for modality in ("series", "video"):
            place = batch.input_ids[0] == processor.tokenizer.convert_tokens_to_ids(mark(modality))
            tokens = []
            for item in (m for m in sample.media if m.modality == modality):
                ready = own[modality].prepare([item])
                found = joined.encode(modality, ready.values, ready.mask)
                given, mask = joined.connector(modality)(found.values, found.mask, found.grid)
                tokens.append(given[0][mask[0]])
            embeds[0, place] = torch.cat(tokens)
        expected = joined.language_model(inputs_embeds=embeds).logits[0, batch.keep[0]]
        logits = joined(**batch.model_inputs()).logits
    torch.testing.assert_close(logits.reshape(expected.shape), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", connectors())
def test_every_connector_takes_clips_of_any_length(name: str, llm_folder: LLM) -> None:
    """Clips of two and three frames, in one batch and alone."""
    joined, processor, collator = composed(str(llm_folder("llama")), ("video",), name)
    samples = [
        tokenise(record("video", row=row, seed=row), processor.tokenizer) for row in (2, 3, 4)
    ]
    alone = [losses(joined, collator, [sample])[0] for sample in samples]
    assert np.isfinite(alone).all()
    assert losses(joined, collator, samples) == pytest.approx(alone, rel=1e-4, abs=1e-4)


def test_a_connector_of_grids_works_frame_by_frame(model: tuple[Any, Any, Any]) -> None:
    joined, _, _ = model
    video = joined.connector("video")
    assert isinstance(video, PerFrame)
    assert isinstance(video, connector_class("avgpool_mlp"))
    assert not isinstance(joined.connector("image"), PerFrame)
    one = joined.connector("image").num_tokens(4)
    assert [video.num_tokens(4 * frames) for frames in (1, 2, 3)] == [one, 2 * one, 3 * one]


ELSEWHERE = """
import sys
sys.modules["modalign"] = None
import numpy as np, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, signals, out = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
given = np.load(signals)
inputs = processor(
    text="see <video> and <vectors> or <table>", videos=[given["video"]], vectors=[given["vectors"]],
    table=[{"age": 3.0, "town": None}], return_tensors="pt",
)
with torch.no_grad():
    np.save(out, model(**inputs).logits.numpy())
"""


def test_a_connector_of_grids_after_a_mean_over_time(
    llm_folder: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPTIONS, "video", OPTIONS["video"] | {"temporal_pooling": "mean"})
    joined, processor, collator = composed(str(llm_folder("llama")), ("video",), "avgpool_mlp")
    assert not isinstance(joined.connector("video"), PerFrame)
    sample = tokenise(record("video", row=2), processor.tokenizer)
    assert np.isfinite(losses(joined, collator, [sample])).all()


def test_saved_and_loaded_where_modalign_is_not(
    model: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    """From the copies of the code that travel with it; decoded signals are plain arrays there."""
    joined, processor, _ = model
    save_model(joined, processor, tmp_path / "saved")
    rng = np.random.default_rng(0)
    given = {
        "video": rng.integers(0, 256, (2, 20, 30, 3), dtype=np.uint8),
        "vectors": rng.normal(size=(3, 5)).astype(np.float32),
    }
    np.savez(tmp_path / "signals.npz", **given)
    arguments = [tmp_path / "saved", tmp_path / "signals.npz", tmp_path / "logits.npy"]
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *map(str, arguments)], check=True, cwd=tmp_path
    )
    inputs = processor(
        text="see <video> and <vectors> or <table>",
        videos=[given["video"]],
        vectors=[given["vectors"]],
        table=[{"age": 3.0, "town": None}],
        return_tensors="pt",
    )
    with torch.no_grad():
        here = joined(**inputs).logits.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), here, atol=1e-5)
    code = {path.name for path in (tmp_path / "saved").glob("*.py")}
    assert {"encoders_video.py", "encoders_image.py", "connectors_frames.py"} <= code


def test_quality_by_what_is_left_in_a_record(llm_folder: LLM, tmp_path: Path) -> None:
    """What the model says of the vectors alone is made the right answer to mixed records."""
    joined, processor, _ = composed(str(llm_folder("llama")), ("image", "vectors"), "mlp")
    save_model(joined, processor, tmp_path / "model")
    rows: list[dict[str, Any]] = []
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(tiny.png_bytes(number))
        vectors = np.random.default_rng(number).normal(size=(3, 5)).round(3).tolist()
        rows.append({"vectors": vectors, "question": "what is it?", "answer": "?"})
    options = {"max_new_tokens": 4, "device": "cpu"}
    tiny.write_jsonl(tmp_path / "vectors.jsonl", rows)
    found = evaluate_model(
        tmp_path / "model", str(tmp_path / "vectors.jsonl"), out=tmp_path / "said.jsonl", **options
    )
    assert found.available == {}  # no record of several modalities
    said = [json.loads(line)["output"] for line in (tmp_path / "said.jsonl").open()]
    mixed = [
        {**row, "image": f"{number}.png", "answer": said[number]} for number, row in enumerate(rows)
    ]
    alone = {"image": "0.png", "question": "what is it?", "answer": "?"}
    text = {"question": "what is it?", "answer": "?"}
    tiny.write_jsonl(tmp_path / "mixed.jsonl", [*mixed, alone, text])
    found = evaluate_model(tmp_path / "model", str(tmp_path / "mixed.jsonl"), **options)
    assert found.overall.measures["accuracy"].n == 8
    assert {name: share.n for name, share in found.available.items()} == {
        "all": 6,
        "image only": 6,
        "vectors only": 6,
    }
    assert found.available["vectors only"].value == 1
    assert found.available["image only"].value < 1
    right = found.overall.measures["accuracy"].value * 8  # neither of the other two can be right
    assert found.available["all"].value == pytest.approx(right / 6)


@pytest.mark.parametrize("modality", modality_names())
def test_media_pass_the_check_and_have_a_blank(modality: str) -> None:
    given = medium(modality, 1)
    check_medium(given)
    blank = blank_like(given)
    assert blank.modality == modality
    assert blank.content_hash() != given.content_hash() or modality == "video"
    check_medium(blank)
    encoder = encoders((modality,))[0]
    assert encoder.prepare([blank]).counts == encoder.prepare([given]).counts
