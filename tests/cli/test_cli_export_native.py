"""``modalign export --to native`` for the classes whose processor is ours; the verbs open the folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import natively
import tiny
from every_modality import sound
from modalign.models.export import save_model

CLASSES = {
    "idefics": ("image", "png", "IdeficsForVisionText2Text"),
    "voxtral": ("audio", "wav", "VoxtralForConditionalGeneration"),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_native_class_with_our_processor(kind: str, cli: Any, tmp_path: Path) -> None:
    """Written, checked in a clean process, and opened by ask and eval with the same answers."""
    modality, ending, loads_as = CLASSES[kind]
    (tmp_path / "parts").mkdir()
    model, processor = getattr(natively, kind)(tmp_path / "parts")
    save_model(model, processor, tmp_path / "model", target="remote-code")
    for number in range(3):
        medium = tiny.image(number) if modality == "image" else sound(0.2 + 0.5 * number, number)
        (tmp_path / f"{number}.{ending}").write_bytes(medium.data or b"")
    shown = [{"type": modality, modality: f"{number}.{ending}"} for number in range(3)]
    what = {"type": "text", "text": "what is it?"}
    asked = [[shown[0], what], [shown[1], what, shown[2]], [what]]
    rows = [
        {"messages": [{"role": "user", "content": each}, {"role": "assistant", "content": "yes"}]}
        for each in asked
    ]
    data = tiny.write_jsonl(tmp_path / "data.jsonl", rows)
    code, out, err = cli(
        *("export", tmp_path / "model", "--out", tmp_path / "out", "--to", "native"),
        *("--data", data, "--json"),
    )
    assert code == 0, err
    found = json.loads(out)
    assert (found["rung"], found["loads_as"]) == ("native", loads_as)
    assert found["records"] == 2  # those with media
    assert found["difference"] <= found["tolerance"] == 1e-5
    assert "trust_remote_code=True" in found["notes"][0]
    said = []
    for folder in ("model", "out"):
        media = (f"--{modality}", tmp_path / f"0.{ending}")
        code, out, err = cli("ask", tmp_path / folder, "what is it?", *media)
        assert code == 0, err
        said.append(out)
    assert said[0] == said[1]
    code, out, err = cli("eval", tmp_path / "out", data, "--json")
    assert code == 0, err
