"""A process of its own: train a model and print its peak, or estimate the same beforehand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers

from modalign.data.readers import read_records
from modalign.data.supervision import tokenise_all
from modalign.memory import peak_resident, resident, return_freed_memory
from modalign.training.budget import Budget
from modalign.training.memory.estimate import estimate_memory
from modalign.training.methods import resolve_method
from modalign.training.session import Session
from modalign.training.settings import TrainSettings
from modalign.training.sources import Parts

BATCH = 8
STEPS = 2


def session(folder: Path, mode: str, method: str, **settings: object) -> Session:
    """The big session, its features cached."""
    parts = Parts(llm=str(folder / "llm"), encoder={"image": str(folder / "tower")})
    llm = parts.load_llm()
    samples = tokenise_all(read_records(str(folder / "data.jsonl")).records, llm.tokenizer)
    del llm
    wanted = TrainSettings(llm=mode, batch_size=BATCH, device="cpu", **settings)  # type: ignore[arg-type]
    return Session(resolve_method(method), parts, wanted, samples, [], folder / "cache", seed=0)


def main() -> None:
    """``memory_child.py FOLDER MODE estimate|train METHOD [SETTINGS]``; modes by commas."""
    folder, modes, what, method = Path(sys.argv[1]), *sys.argv[2:5]
    settings = json.loads(sys.argv[5]) if len(sys.argv) > 5 else {}
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    assert return_freed_memory()
    baseline = resident()
    for mode in modes.split(","):
        made = session(folder, mode, method, **settings)
        if what == "estimate":
            print(estimate_memory(made, baseline=baseline).model_dump_json())
            print(estimate_memory(made).model_dump_json())
        else:
            # Loading has a peak of its own, which is not what is estimated.
            Path("/proc/self/clear_refs").write_text("5")
            budget = Budget("samples", BATCH * STEPS / 0.75)
            made.run(budget, folder / f"run-{mode}", factor=1.0)
            print(json.dumps({"baseline": baseline, "peak": peak_resident()}))


if __name__ == "__main__":
    main()
