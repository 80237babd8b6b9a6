"""Observe a loaded model's answers: token ids, logits and greedy ids, batched and one by one.

Imports only the standard library, torch, transformers and PIL: it also runs as a script in a clean
process in which modalign cannot be imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Conversation = list[dict[str, Any]]
_FROM = "\U000f0000"  # precedes a control token that is text; transformers' own marker


def prepare(
    processor: Any, conversations: list[Conversation], *, answered: bool = False, tools: Any = None
) -> dict[str, Tensor]:
    """Build left-padded inputs of conversations, each ending before or after its answer.

    The processor is told if texts contain control tokens marked as text. Without a processor, conversations are
    rows of token ids, equally long.
    """
    if processor is None:
        ids = torch.tensor(conversations)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options: dict[str, Any] = {"padding": True, "padding_side": "left"}
    texts = (
        part.get("text", "")
        for conversation in conversations
        for message in conversation
        for part in message["content"]
        if isinstance(part, dict)
    )
    if any(_FROM in text for text in texts):
        options["sanitize_control_tokens"] = True
    return dict(
        processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=not answered,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=options,
            **({"tools": list(tools)} if tools else {}),
        )
    )


def placed(inputs: dict[str, Any], model: Any) -> dict[str, Tensor]:
    """Move a model's inputs to its device, signals in its precision; drop non-tensors."""
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
        if isinstance(value, Tensor)
    }


@torch.no_grad()
def observe(
    model: Any, processor: Any, conversations: list[Conversation], max_new_tokens: int
) -> dict[str, Tensor]:
    """Return everything that saving must not change, by name."""
    was_training = model.training
    model.eval()
    seen: dict[str, Tensor] = {}
    groups = {"batched": conversations} if conversations else {}
    groups |= {f"single.{number}": [item] for number, item in enumerate(conversations)}
    for name, group in groups.items():
        inputs = placed(prepare(processor, group), model)
        present = inputs["attention_mask"].bool()
        logits = model(**inputs).logits
        new = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        seen[f"{name}.input_ids"] = inputs["input_ids"].cpu()
        seen[f"{name}.logits"] = logits[present].float().cpu()
        seen[f"{name}.greedy"] = new[:, inputs["input_ids"].shape[1] :].contiguous().cpu()
    model.train(was_training)
    return seen


class _Blocked:
    """An import finder that refuses packages, so that nothing can depend on them unnoticed."""

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


class FedByGateway:
    """A plain language model with a gateway's prompt embeddings as input."""

    training = False

    def __init__(self, media: Any, language: Any) -> None:
        self.media, self.language = media.eval(), language.eval()
        self.device, self.dtype = media.device, media.dtype

    def eval(self) -> FedByGateway:
        """Do nothing: both models are in evaluation mode."""
        return self

    def train(self, mode: bool = True) -> None:
        """Do nothing: neither model is trained."""

    def _inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        embeds = self.media(**inputs).to(self.language.device, self.language.dtype)
        return {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}

    def __call__(self, **inputs: Tensor) -> Any:
        """Run as the composed model would."""
        return self.language(**self._inputs(inputs))

    def generate(self, **inputs: Any) -> Tensor:
        """Return the prompt's ids followed by the answer's."""
        options = {key: inputs.pop(key) for key in ("max_new_tokens", "do_sample")}
        new = self.language.generate(**self._inputs(inputs), **options)
        return torch.cat([inputs["input_ids"], new], dim=1)


class FedByCodes(FedByGateway):
    """A plain language model with the token ids of a signal's tokenizer as input."""

    def _inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        ids = self.media.code_ids(**inputs)
        return {"input_ids": ids, "attention_mask": inputs["attention_mask"]}

    def __call__(self, **inputs: Tensor) -> Any:
        """Run as the composed model would: logits of its ids only."""
        found = self.language(**self._inputs(inputs))
        first = min(filter(None, (self.media.config.code_offsets or {}).values()), default=None)
        found.logits = found.logits[..., :first]
        return found

    def generate(self, **inputs: Any) -> Tensor:
        """Return ids of the composed model's length, with the prompt's ids restored."""
        options = {key: inputs.pop(key) for key in ("max_new_tokens", "do_sample")}
        prompt = inputs["input_ids"]
        made = self.language.generate(**self._inputs(inputs), **options)
        return torch.cat([prompt, made[:, prompt.shape[1] :]], dim=1)


def _seen_in(model: Any, dtype: str | None) -> Any:
    """A model in the dtype in which the one that was saved was seen."""
    return model if dtype is None else model.to(getattr(torch, dtype))


def load(item: dict[str, Any]) -> tuple[Any, Any]:
    """Load a model and its processor with plain transformers, or a stand-in that answers like it."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor
    from transformers import AutoModelForMultimodalLM as AutoWhole

    folder = item["folder"]
    if item["form"] == "text":
        trust = item["trust_model"]
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust).eval(), None
    if item["form"] == "whole":
        model = AutoWhole.from_pretrained(folder, trust_remote_code=item["trust_model"])
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=item["trust_processor"])
        return _seen_in(model, item["dtype"]).eval(), processor
    side = item["media"]
    media = AutoModel.from_pretrained(side, trust_remote_code=True)
    language = AutoModelForCausalLM.from_pretrained(item["language_model"], trust_remote_code=False)
    media, language = _seen_in(media, item["dtype"]), _seen_in(language, item["dtype"])
    joined = (FedByGateway if item["form"] == "gateway" else FedByCodes)(media, language)
    return joined, AutoProcessor.from_pretrained(side, trust_remote_code=True)


def main(job_file: str) -> None:
    """Load every folder of a job with plain transformers and record its answers."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    sys.meta_path.insert(0, _Blocked(job["blocked"]))
    import transformers
    from safetensors.torch import save_file

    transformers.logging.set_verbosity_error()
    for item in job["items"]:
        model, processor = load(item)
        conversations = item["conversations"]
        if processor is not None:
            conversations = [_with_media(conversation) for conversation in conversations]
        seen = observe(model, processor, conversations, item["max_new_tokens"])
        save_file(seen, item["out"])


if __name__ == "__main__":
    main(sys.argv[1])
