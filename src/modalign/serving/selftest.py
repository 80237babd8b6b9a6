"""Test at start whether a batch computes what each row does alone, and pieces of a prompt what all of it does.

Measured, not assumed from a class name: models with attention biases of their own fail here and answer one
request at a time. Layers that keep a recurrent state, and positions of several axes, are known without a test.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modalign.data.images import blank_image
from modalign.data.records import Message
from modalign.serving.growing import Growing
from modalign.serving.requests import Prompt
from modalign.serving.slots import Slots

if TYPE_CHECKING:
    from modalign.serving.prompts import Prompts
    from modalign.serving.runners import Memory, Runner

STEPS = 3
TOLERANCE = 1e-3  # of logits, times their size where that is above 1
HALF_TOLERANCE = 5e-2


@torch.inference_mode()
def why_not_batched(runner: Runner, prompts: Prompts) -> str:
    """Return why the model's requests cannot be batched, or an empty string if they can."""
    if runner.obstacle:
        return runner.obstacle
    try:
        asked = _questions(prompts)
        expected = [_alone(runner, prompt) for prompt in asked]
        found = _together(runner, asked, expected)
    except Exception as error:
        return f"a batch of rows fails ({type(error).__name__}: {error})"
    for (logits, _), other in zip(expected, found, strict=True):
        if difference := _apart(runner, logits, other):
            return f"a batch of rows gives logits {difference:.1e} apart from each row alone"
    return ""


@torch.inference_mode()
def why_not_in_pieces(runner: Runner, prompts: Prompts) -> str:
    """Return why prompts must be read in one piece, or an empty string if they need not."""
    try:
        for prompt in _questions(prompts):
            whole = runner.prefill([prompt], all_logits=True).logits[0].float()
            pieces = _piecewise(runner, prompt)
            if difference := _apart(runner, whole, pieces):
                return f"pieces of a prompt give logits {difference:.1e} apart from the whole of it"
    except Exception as error:
        return f"reading pieces of a prompt fails ({type(error).__name__}: {error})"
    return ""


def _piecewise(runner: Runner, prompt: Prompt) -> Tensor:
    """Return the logits (T, V) of a prompt that is read in growing pieces."""
    cache, found = Growing(len(prompt.ids)), list[Tensor]()
    memories: list[Memory] = []
    while cache.read < cache.length:
        stop = min(cache.length, runner.cut(prompt, cache.read + 1 + len(found)))
        read = runner.prefill([prompt], cache, stop, all_logits=True, memories=memories)
        memories = read.memories
        found.append(read.logits[0].float())
    return torch.cat(found)


def _apart(runner: Runner, expected: Tensor, found: Tensor) -> float:
    """Return how far logits are apart, or 0 where that is rounding."""
    half = runner.model.dtype.itemsize < 4
    allowed = HALF_TOLERANCE if half else TOLERANCE
    difference = float((expected - found).abs().max())
    return 0.0 if difference <= allowed * max(1.0, float(expected.abs().max())) else difference


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
        whole = replace(prompt, ids=(*prompt.ids, *tokens))
        logits = runner.by_itself(whole)[-1].float()
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
