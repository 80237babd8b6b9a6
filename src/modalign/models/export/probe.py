"""What a loaded model answers: token ids, logits and greedy ids, batched and one by one.

Imports only the standard library, torch, transformers and PIL: it also runs as a script in a clean
process, with modalign itself made impossible to import.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Conversation = list[dict[str, Any]]


def prepare(processor: Any, conversations: list[Conversation]) -> dict[str, Tensor]:
    """Left-padded inputs of conversations, each ending where the answer would begin."""
    return dict(
        processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
    )


@torch.no_grad()
def observe(
    model: Any, processor: Any, conversations: list[Conversation], max_new_tokens: int
) -> dict[str, Tensor]:
    """Everything that must not change by saving, by name."""
    was_training = model.training
    model.eval()
    seen: dict[str, Tensor] = {}
    groups = {"batched": conversations} if conversations else {}
    groups |= {f"single.{number}": [item] for number, item in enumerate(conversations)}
    for name, group in groups.items():
        inputs = prepare(processor, group)
        inputs = {
            key: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        present = inputs["attention_mask"].bool()
        logits = model(**inputs).logits
        new = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        seen[f"{name}.input_ids"] = inputs["input_ids"].cpu()
        seen[f"{name}.logits"] = logits[present].float().cpu()
        seen[f"{name}.greedy"] = new[:, inputs["input_ids"].shape[1] :].contiguous().cpu()
    model.train(was_training)
    return seen


class _Blocked:
    """An import finder that refuses packages, so that nothing can depend on them unseen."""

    def __init__(self, packages: list[str]) -> None:
        self.packages = set(packages)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuse, or leave the search to the next finder."""
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)


def _with_media(conversation: Conversation) -> Conversation:
    import numpy as np
    from PIL import Image

    for message in conversation:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if "path" in part:
                part["image"] = Image.open(part.pop("path")).convert("RGB")
            if "array" in part:
                part[part["type"]] = np.load(part.pop("array"), allow_pickle=False)
    return conversation


def main(job_file: str) -> None:
    """Load every folder of a job with plain transformers and write down what it answers."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    sys.meta_path.insert(0, _Blocked(job["blocked"]))
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    transformers.logging.set_verbosity_error()
    for item in job["items"]:
        trust = item["trust_remote_code"]
        model = AutoModelForImageTextToText.from_pretrained(item["folder"], trust_remote_code=trust)
        processor = AutoProcessor.from_pretrained(item["folder"], trust_remote_code=trust)
        conversations = [_with_media(conversation) for conversation in item["conversations"]]
        seen = observe(model.eval(), processor, conversations, item["max_new_tokens"])
        save_file(seen, item["out"])


if __name__ == "__main__":
    main(sys.argv[1])
