"""Test at start whether a batch of rows computes the same as each row alone.

Measured, never assumed from a class name: models with recurrent states, positions of several axes or
attention biases of their own fail here and answer one request at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modalign.data.images import blank_image
from modalign.data.records import Message
from modalign.serving.requests import Prompt
from modalign.serving.slots import Slots

if TYPE_CHECKING:
    from modalign.serving.prompts import Prompts
    from modalign.serving.runners import Runner

STEPS = 3
TOLERANCE = 1e-3  # of logits, times their size where that is above 1
HALF_TOLERANCE = 5e-2


@torch.inference_mode()
def why_not_batched(runner: Runner, prompts: Prompts) -> str:
    """Return why the model's requests cannot be batched, or an empty string if they can."""
    try:
        asked = _questions(prompts)
        expected = [_alone(runner, prompt) for prompt in asked]
        found = _together(runner, asked, expected)
    except Exception as error:
        return f"a batch of rows fails ({type(error).__name__}: {error})"
    half = runner.model.dtype.itemsize < 4
    allowed = HALF_TOLERANCE if half else TOLERANCE
    for (logits, _), other in zip(expected, found, strict=True):
        difference = float((logits - other).abs().max())
        if not difference <= allowed * max(1.0, float(logits.abs().max())):
            return f"a batch of rows gives logits {difference:.1e} apart from each row alone"
    return ""


def _questions(prompts: Prompts) -> list[Prompt]:
    ids = prompts.text("one two three").ids
    asked = [Prompt(ids), Prompt(ids + ids + ids), Prompt(ids + ids)]
    if prompts.has_media and "image" in prompts.modalities:
        shown = Message("user", (blank_image(96, 64), "What is this?"))
        asked.insert(1, prompts.chat([shown]))
    return asked


def _alone(runner: Runner, prompt: Prompt) -> tuple[Tensor, list[int]]:
    """Return logits (STEPS + 1, V) of one row, recomputed in full at every step, and its tokens."""
    rows, tokens = [], list[int]()
    for _ in range(STEPS + 1):
        whole = Prompt((*prompt.ids, *tokens), prompt.inputs, prompt.media, prompt.spans)
        logits = runner.prefill([whole]).logits[0, -1].float()
        rows.append(logits)
        tokens.append(int(logits.argmax()))
    return torch.stack(rows), tokens


def _together(
    runner: Runner, asked: list[Prompt], expected: list[tuple[Tensor, list[int]]]
) -> list[Tensor]:
    """Return the same logits from rows that join one after the other and decode together."""
    slots = Slots()
    firsts, memories = [], []
    for prompt in asked:
        read = runner.prefill([prompt])
        firsts.append(read.logits[0, -1].float())
        memories.append(read.memories[0])
        slots.join(read.layers)
    steps = [firsts]
    for step in range(STEPS):
        ids = torch.tensor([tokens[step] for _, tokens in expected], device=runner.device)
        steps.append([row.float() for row in runner.step(ids, slots, memories)])
    return [torch.stack([step[row] for step in steps]) for row in range(len(asked))]
