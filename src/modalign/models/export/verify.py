"""Reload a saved model and check that it answers as before."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modalign.chat_templates import prompt_ids
from modalign.encoders.registry import prepare_signals
from modalign.errors import ModalignError
from modalign.models import probe
from modalign.models.export.folder import load_model, widest_dtype
from modalign.models.probe import Conversation, observe
from modalign.strict_json import read_object

TOLERANCE = 1e-5  # for fp32 logits, relative to their size where that is above 1
HALF_TOLERANCE = 2e-2
NEW_TOKENS = 8


@dataclass(frozen=True)
class Expected:
    """What a saved model must answer, in a separate process.

    Attributes:
        folder: the saved model.
        conversations: its inputs.
        seen: the result of :func:`observe` on the original model.
        tolerance: tolerance of logits.
        max_new_tokens: as in :func:`observe`.
        form: ``whole`` models answer by themselves; ``gateway`` and ``codes`` come in front of a
            language model; ``text`` models are causal language models whose inputs are rows of token ids.
        media: folder of the part in front of it.
        language_model: folder of that language model.
        dtype: dtype of the model when it was seen; None: the stored one.
    """

    folder: Path
    conversations: Sequence[Conversation]
    seen: dict[str, Tensor]
    tolerance: float = TOLERANCE
    max_new_tokens: int = NEW_TOKENS
    form: Literal["whole", "gateway", "codes", "text"] = "whole"
    media: Path | None = None
    language_model: Path | None = None
    dtype: torch.dtype | None = None


def tolerance_of(model: nn.Module) -> float:
    """Return the tolerance for a model's number format."""
    half = any(parameter.dtype.itemsize < 4 for parameter in model.parameters())
    return HALF_TOLERANCE if half else TOLERANCE


def verify_saved(
    folder: Path,
    model: Any,
    processor: Any,
    conversations: Sequence[Conversation],
    *,
    tolerance: float | None = None,
    max_new_tokens: int = NEW_TOKENS,
    seen: dict[str, Tensor] | None = None,
) -> float:
    """Reload the folder, and compare ids, logits and greedy ids with the model in memory.

    Args:
        folder: as written by ``save_model``.
        model: the model that was saved.
        processor: its processor.
        conversations: chat messages with image parts; :func:`modalign.models.asking.conversation_of`
            makes them.
        tolerance: for logits, relative to the largest where that is above 1; None: by number format.
        max_new_tokens: length of the greedy answers.
        seen: the result of :func:`observe` on the model with the same arguments, if known.

    Returns:
        The largest difference of logits.

    Raises:
        ModalignError: something differs; the message says what and by how much.
    """
    if not conversations:
        raise ModalignError("nothing to compare a saved model on: give at least one conversation")
    limit = tolerance_of(model) if tolerance is None else tolerance
    for conversation in conversations:
        check_trained_ids(processor, conversation)
    asked = list(conversations)
    expected = observe(model, processor, asked, max_new_tokens) if seen is None else seen
    again, its_processor = load_model(folder)
    again.to(model.device, widest_dtype(model))
    _check_end_ids(model, again, folder)
    answers = observe(again, its_processor, asked, max_new_tokens)
    return compare(expected, answers, limit, str(folder))


def check_trained_ids(processor: Any, conversation: Conversation) -> None:
    """Check that the processor gives the same ids as training: the raw template with repeated placeholders."""
    flat = []
    stand_ins: dict[int, list[int]] = {}  # placeholder -> positions of its media in reading order
    for message in conversation:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(_flat_part(processor, part, stand_ins) for part in content)
        flat.append({**message, "content": content})
    trained: list[int] = []
    for token in prompt_ids(processor.tokenizer, flat):
        trained += [token] * (stand_ins[token].pop(0) if token in stand_ins else 1)
    given = probe.prepare(processor, [conversation])["input_ids"][0].tolist()
    if given != trained:
        where = next(
            (i for i, pair in enumerate(zip(given, trained, strict=False)) if pair[0] != pair[1]),
            "end",
        )
        raise ModalignError(
            f"the processor gives {len(given)} token ids, but training had {len(trained)}; they "
            f"differ from position {where} on"
        )


def _flat_part(processor: Any, part: dict[str, Any], stand_ins: dict[int, list[int]]) -> str:
    """Convert a part to text; a medium's positions are recorded under its placeholder's id."""
    kind = part["type"]
    if kind == "text":
        return str(part["text"])
    own = getattr(processor, "signals", {}).get(kind)
    if own is None:
        token, count = processor.image_token, processor.num_image_tokens
    else:
        token = own["token"]
        count = own["tokens"][prepare_signals(kind, own["spec"], [part[kind]]).counts[0]]
    stand_ins.setdefault(processor.tokenizer.convert_tokens_to_ids(token), []).append(count)
    return str(token)


def _check_end_ids(model: Any, again: Any, folder: Path) -> None:
    for name in ("eos_token_id", "pad_token_id"):
        ours, theirs = (getattr(m.generation_config, name) for m in (model, again))
        if ours != theirs:
            raise ModalignError(f"{folder}: {name} is {theirs} after loading, {ours} before")


def compare(
    expected: dict[str, Tensor], seen: dict[str, Tensor], tolerance: float, label: str
) -> float:
    """Return the largest difference of logits; raise ModalignError if anything differs too much."""
    if expected.keys() != seen.keys():
        raise ModalignError(f"{label}: {sorted(expected.keys() ^ seen.keys())} seen only once")
    largest = 0.0
    for name, value in expected.items():
        other = seen[name]
        if value.shape != other.shape:
            raise ModalignError(
                f"{label}: {name} has shape {tuple(other.shape)} after loading, "
                f"{tuple(value.shape)} before"
            )
        if not value.is_floating_point():
            if not torch.equal(value, other):
                raise ModalignError(f"{label}: {name} differ after loading")
            continue
        difference = float((value - other).abs().max())
        if not difference <= tolerance * max(1.0, float(value.abs().max())):  # NaN fails too
            raise ModalignError(
                f"{label}: {name} differ by {difference:.2e} after loading; "
                f"{tolerance:.0e} is allowed"
            )
        largest = max(largest, difference)
    return largest


def verify_in_clean_process(
    expected: Sequence[Expected], *, blocked: Sequence[str] = ("modalign",), timeout: float = 600
) -> list[float]:
    """Load saved models where modalign cannot be imported, with plain transformers, and compare.

    Args:
        expected: the models, all checked by one process.
        blocked: packages that the process cannot import.
        timeout: seconds.

    Returns:
        The largest difference of logits of each.

    Raises:
        ModalignError: a model does not load there, or gives different answers.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        items = []
        for number, item in enumerate(expected):
            items.append(
                {
                    "folder": str(item.folder.resolve()),
                    "trust_model": _has_code(item.folder / "config.json"),
                    "trust_processor": _has_code(item.folder / "processor_config.json"),
                    "conversations": item.conversations
                    if item.form == "text"
                    else _with_files(item.conversations, work / str(number)),
                    "max_new_tokens": item.max_new_tokens,
                    "out": str(work / f"{number}.safetensors"),
                    "form": item.form,
                    "dtype": item.dtype and str(item.dtype).removeprefix("torch."),
                    "media": str((item.media or item.folder).resolve()),
                    "language_model": str((item.language_model or item.folder).resolve()),
                }
            )
        job = work / "job.json"
        job.write_text(json.dumps({"blocked": list(blocked), "items": items}), encoding="utf-8")
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(work / "modules"),
        }
        done = subprocess.run(
            [sys.executable, "-I", str(Path(probe.__file__)), str(job)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise ModalignError(
                f"a saved model does not load without modalign:\n{done.stderr[-2000:]}"
            )
        return [
            compare(
                item.seen,
                load_file(work / f"{number}.safetensors"),
                item.tolerance,
                str(item.folder),
            )
            for number, item in enumerate(expected)
        ]


def _has_code(file: Path) -> bool:
    """Whether a configuration refers to code in its folder; others are loaded without trust."""
    return file.is_file() and "auto_map" in read_object(file)


def _with_files(conversations: Sequence[Conversation], folder: Path) -> list[Conversation]:
    """Convert conversations to JSON values: each image becomes a PNG file, each array a NumPy file."""
    folder.mkdir()
    written = []
    for conversation in conversations:
        messages = [copy.copy(message) for message in conversation]
        for message in messages:
            if isinstance(message["content"], str):
                continue
            message["content"] = [dict(part) for part in message["content"]]
            for part in message["content"]:
                kind = part["type"]
                path = folder / f"{len(list(folder.iterdir()))}"
                if "image" in part:
                    part.pop("image").convert("RGB").save(path := path.with_suffix(".png"))
                    part["path"] = str(path)
                elif isinstance(part.get(kind), np.ndarray):
                    np.save(path := path.with_suffix(".npy"), part.pop(kind), allow_pickle=False)
                    part["array"] = str(path)
        written.append(messages)
    return written
