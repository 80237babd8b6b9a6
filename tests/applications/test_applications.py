"""Applications stay small: at most 400 lines each, templates included, and no model or loop of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import modalign.applications
from modalign.numbers.ranking import among_first, auroc, threshold_between

ROOM = Path(modalign.applications.__file__).parent
FOLDERS = sorted(path for path in ROOM.iterdir() if (path / "__init__.py").exists())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_application_is_small_and_trains_nothing_itself(folder: Path) -> None:
    texts = [file.read_text(encoding="utf-8") for file in folder.rglob("*") if file.is_file()
             and file.suffix != ".pyc"]  # fmt: skip
    assert sum(text.count("\n") for text in texts) <= 400
    assert not any(
        word in text for text in texts for word in ("nn.Module", ".backward(", "import torch")
    )


def test_auroc_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    above, below = rng.integers(0, 9, 40) + 2, rng.integers(0, 9, 60)
    found = auroc(above, below)
    labels = [1] * 40 + [0] * 60
    assert found.value == pytest.approx(roc_auc_score(labels, np.concatenate([above, below])))
    assert found.low < found.value < found.high
    assert (found.n, found.chance) == (100, 0.5)
    assert auroc([1], [1]).value == 0.5


def test_ties_are_shared() -> None:
    scores = np.array([[3.0, 3, 1, 0], [0, 0, 0, 0], [1, 2, 3, 4]])
    assert among_first(scores, [0, 2, 0], 1).tolist() == [0.5, 0.25, 0]
    assert among_first(scores, [0, 2, 0], 3).tolist() == [1, 0.75, 0]
    assert among_first(scores, [2, 2, 0], 3).tolist() == [1, 0.75, 0]


def test_the_threshold_is_the_best_cut() -> None:
    assert threshold_between([3, 4, 5], [0, 1, 2]) == 3
    rng = np.random.default_rng(1)
    above, below = rng.normal(1, 1, 50), rng.normal(0, 1, 30)

    def balanced(cut: float) -> float:
        return float((above >= cut).mean() + (below < cut).mean())

    found = threshold_between(above, below)
    assert balanced(found) == max(balanced(cut) for cut in np.concatenate([above, below]))
