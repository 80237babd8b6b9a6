"""Run lm-evaluation-harness on local suite files: in its own environment, without modalign.

    PYTHON lm_suites.py JOB.json

The job names a model, texts to read, and per task the rows in the form of its published data set. It writes
``found.json`` next to it: per task the harness's prompts, options and log-likelihoods, and those of the texts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def definition_of(name: str) -> Path:
    """Return the file in which the harness defines a task."""
    for file in (Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml"):
        if f"task: {name}\n" in file.read_text():
            return file
    raise FileNotFoundError(name)


def main(job: Path) -> None:
    """Write ``found.json`` next to the job."""
    asked = json.loads(job.read_text())
    model = HFLM(pretrained=asked["model"], device="cpu", dtype="float32", batch_size=8)
    places = job.parent / "tasks"
    places.mkdir()
    for name, file in asked["tasks"].items():
        local = {
            "include": str(definition_of(name)),
            "task": f"{name}_local",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": dict.fromkeys(("test", "train", "validation"), file)},
        }
        (places / f"{name}.yaml").write_text(json.dumps(local))  # JSON is YAML
    manager = TaskManager(include_path=str(places))
    names: list = [f"{name}_local" for name in asked["tasks"]]
    found = simple_evaluate(
        model=model, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    options = {
        name.removesuffix("_local"): [
            {
                "number": sample["doc_id"],
                "pairs": [
                    [argument[0], argument[1], float(scored[0])]
                    for argument, scored in zip(sample["arguments"], sample["filtered_resps"], strict=True)
                ],
                "acc": sample["acc"],
            }
            for sample in samples
        ]
        for name, samples in found["samples"].items()
    }  # fmt: skip
    reader = HFLM(
        pretrained=asked["model"], device="cpu", dtype="float32", batch_size=1, add_bos_token=False
    )
    requests = [
        Instance("loglikelihood_rolling", {}, (text,), number)
        for number, text in enumerate(asked["texts"])
    ]
    texts = [float(total) for total in reader.loglikelihood_rolling(requests)] if requests else []
    (job.parent / "found.json").write_text(json.dumps({"options": options, "texts": texts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
