"""What the encoders cannot take is found before anything trains, by file and row, and counts as broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from modalign.errors import DataError
from modalign.training.sources import DataFiles, Parts
from modalign.training.splits import load_splits, that_fit


@pytest.fixture
def files(tmp_path: Path) -> DataFiles:
    """Sets of two vectors to train on; among those to judge by, one of nine and one of another width."""
    rng = np.random.default_rng(0)

    def write(name: str, lengths: list[int], width: int = 3) -> str:
        rows = []
        for number, length in enumerate(lengths):
            file = f"{name}-{number}.npy"
            np.save(tmp_path / file, rng.normal(size=(length, width)).astype(np.float32))
            rows.append(
                {"id": f"{name}{number}", "vectors": file, "question": "red ?", "answer": "yes"}
            )
        return str(tiny.write_jsonl(tmp_path / f"{name}.jsonl", rows))

    return DataFiles(
        train=write("train", [2] * 6), val=write("val", [2, 2]), eval=write("eval", [2, 9, 2, 2])
    )


def parts(llm_folder: Any) -> Parts:
    return Parts(llm=str(llm_folder("llama")), encoder={"vectors": "none"})


def test_a_medium_that_is_too_long_is_refused_with_its_row(
    files: DataFiles, llm_folder: Any
) -> None:
    splits = load_splits(files, parts(llm_folder).load_llm().tokenizer, modalities=("vectors",))
    assert len(splits.evaluation) == 4
    with pytest.raises(DataError, match=r"eval\.jsonl:2.*9 vectors, but the model takes at most"):
        that_fit(splits, parts(llm_folder), files)


def test_under_the_quota_it_is_dropped_and_counted(files: DataFiles, llm_folder: Any) -> None:
    allowed = files.model_copy(update={"skip_broken": "30%"})
    splits = load_splits(allowed, parts(llm_folder).load_llm().tokenizer, modalities=("vectors",))
    fitting = that_fit(splits, parts(llm_folder), allowed)
    assert [sample.record.id for sample in fitting.evaluation] == ["eval0", "eval2", "eval3"]
    assert fitting.train == splits.train
    assert fitting.dropped == 1
    assert "1 records of evaluation were dropped" in fitting.notes[-1]


def test_images_are_not_looked_at_again(small_data: Path, llm_folder: Any) -> None:
    of_images = Parts(llm=str(llm_folder("llama")), encoder={"image": "nowhere"})
    files = DataFiles(train=str(small_data / "data.jsonl"))
    splits = load_splits(files, of_images.load_llm().tokenizer)
    assert that_fit(splits, of_images, files) is splits
