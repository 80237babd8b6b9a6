"""Licences of the parts: read from their own model cards, carried along, shown on the model's card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from modalign.models.compose import compose, load_language_model
from modalign.models.encoders.image import load_image_encoder
from modalign.models.export import load_model, save_model
from modalign.models.licences import origin


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [mit, bsd-3-clause]\n---\n", "mit, bsd-3-clause"),
        ("# No front matter\nlicense: mit", None),
        ("---\ntags: [x]\n---\n", None),
        ("---\n{broken: [\n---\n", None),
        (None, None),
    ],
)
def test_what_a_card_states(tmp_path: Path, card: str | None, licence: str | None) -> None:
    folder = tmp_path / "part"
    folder.mkdir()
    if card is not None:
        (folder / "README.md").write_text(card)
    expected = {"name": "part"} | ({"licence": licence} if licence else {})
    assert origin(str(folder)) == expected


def test_parts_without_an_origin() -> None:
    assert origin(None) == origin("none") == {}
    assert origin("package.module:Class") == {"name": "package.module:Class"}


def saved_card(llm: Path, tower: Path, out: Path) -> str:
    model, processor = compose(load_language_model(str(llm)), load_image_encoder(str(tower)), "mlp")
    saved = save_model(model, processor, out)
    return (saved.folder / "README.md").read_text()


def test_the_card_of_a_model_names_its_parts_licences(
    llm_folder: Any, tower_folder: Any, tmp_path: Path
) -> None:
    llm = shutil.copytree(llm_folder("llama"), tmp_path / "small-llama")
    tower = shutil.copytree(tower_folder("siglip"), tmp_path / "small-siglip")
    plain = saved_card(llm, tower, tmp_path / "plain")
    assert "| language model | llama | small-llama | not stated at its source |" in plain
    assert "\nlicense:" not in plain
    (llm / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (tower / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    same = saved_card(llm, tower, tmp_path / "same")
    assert "| language model | llama | small-llama | apache-2.0 |" in same
    assert "small-siglip | apache-2.0 |" in same
    assert same.startswith("---\nlicense: apache-2.0\n")
    (tower / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    other = saved_card(llm, tower, tmp_path / "other")
    assert "small-siglip | cc-by-nc-4.0 |" in other
    assert other.startswith("---\nlicense: other\n")


def test_origins_stay_with_a_model_of_its_own_class(
    llm_folder: Any, tower_folder: Any, tmp_path: Path
) -> None:
    llm = shutil.copytree(llm_folder("llama"), tmp_path / "small-llama")
    (llm / "README.md").write_text("---\nlicense: mit\n---\n")
    made = compose(
        load_language_model(str(llm)), load_image_encoder(str(tower_folder("siglip"))), "resampler"
    )
    save_model(*made, tmp_path / "model")
    again, processor = load_model(tmp_path / "model")
    save_model(again, processor, tmp_path / "again")  # type: ignore[arg-type]
    assert "small-llama | mit |" in (tmp_path / "again" / "README.md").read_text()
