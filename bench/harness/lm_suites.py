"""Run lm-evaluation-harness on local suite files: in its own environment, without modalign.

    PYTHON lm_suites.py JOB.json

The job names a model, texts to read, and per task the rows in the form of its published data set. Beside it
``found.json`` is written: per task the harness's prompts, options and log-likelihoods, and those of the texts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def main(job: Path) -> None:
    """Write ``found.json`` beside the job."""
    asked = json.loads(job.read_text())
    model = HFLM(pretrained=asked["model"], device="cpu", dtype="float32", batch_size=8)
    tasks = [
        {
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": dict.fromkeys(("test", "train", "validation"), file)},
        }
        for name, file in asked["tasks"].items()
    ]  # fmt: skip
    found = simple_evaluate(model=model, tasks=tasks, log_samples=True, bootstrap_iters=0)
    options = {
        name: [
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
