"""An objective term of one's own, in a recipe of two terms: train ``linear`` with and without it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from modalign.cache import cache_directory
from modalign.comparison.config import load_config
from modalign.training.budget import Budget
from modalign.training.methods import Method
from modalign.training.objectives import objective_term
from modalign.training.session import Session
from modalign.training.settings import Stage
from modalign.training.splits import load_splits


@objective_term("confidence")
def confidence(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Minus the entropy of the predicted words (Pereyra et al., arXiv 1701.06548), per supervised token."""
    logs = outputs.logits.float().log_softmax(-1)
    return (logs.exp() * logs).sum() / batch.num_supervised


def main() -> None:
    """Train the same method twice under the same seed and budget."""
    config, _ = load_config(None)
    splits = load_splits(config.data, config.parts.load_llm().tokenizer)
    for weight in (0.0, 0.1):
        objective = {"cross_entropy": 1.0, **({"confidence": weight} if weight else {})}
        method = Method("linear", "linear", "matched", (Stage(objective=objective),))
        session = Session(
            method,
            config.parts,
            config.training,
            splits.train,
            splits.val,
            cache_directory(),
            seed=0,
        )
        with tempfile.TemporaryDirectory() as folder:
            result = session.run(Budget.parse("1000samples"), Path(folder), factor=1.0)
        print(f"confidence x{weight}: validation loss {result.curve[-1]['val_loss']:.3f}")


if __name__ == "__main__":
    main()
