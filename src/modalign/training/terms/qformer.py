"""The three terms of the Q-Former's stage one (BLIP-2, arXiv 2301.12597); the paper adds them with equal weights.

They read :class:`modalign.connectors.perceivers.qformer_stage_one.StageOneOutputs`. Hard negatives are
drawn before the matching pass, by ``draw_hard_negatives`` of the same file. A batch of stage one is never
cut, so the terms are means over what they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from modalign.connectors.perceivers.qformer_stage_one import NO_TARGET
from modalign.training.objectives import objective_term


def soft_targets(item_ids: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(B, B) rows that sum to 1: even over the columns of the same item, smoothed over all."""
    same = (item_ids.unsqueeze(1) == item_ids.unsqueeze(0)).float()
    even = same / same.sum(1, keepdim=True)
    return even * (1 - label_smoothing) + label_smoothing / len(item_ids)


@objective_term("image_text_contrastive", needs={"stage_one"})
def image_text_contrastive(
    outputs: Any, batch: Any, references: Mapping[str, Any], *, label_smoothing: float = 0.1
) -> Tensor:
    """Cross-entropy of the similarities in both directions, averaged.

    ``outputs.image_to_text`` and ``text_to_image`` (B, B) are over the temperature already;
    ``outputs.item_ids`` (B,) are equal where rows hold the same item: its texts share the target.
    ``label_smoothing`` is spread evenly over all columns.
    """
    targets = soft_targets(outputs.item_ids, label_smoothing)
    directions = (outputs.image_to_text.float(), outputs.text_to_image.float())
    forth, back = (functional.cross_entropy(logits, targets) for logits in directions)
    return (forth + back) / 2


@objective_term("image_text_matching", needs={"stage_one"})
def image_text_matching(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Cross-entropy of the two-way match head over true and wrong pairs: (P, 2), (P,)."""
    return functional.cross_entropy(outputs.match_logits.float(), outputs.match_targets)


@objective_term("image_grounded_captioning", needs={"stage_one"})
def image_grounded_captioning(
    outputs: Any, batch: Any, references: Mapping[str, Any], *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy per word, (B, T, V) against (B, T); positions of -100 do not count.

    The logits stand at the position of the word they predict, so nothing is shifted here. A batch
    without a single word costs nothing.
    """
    targets = outputs.caption_targets
    total = functional.cross_entropy(
        outputs.caption_logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=NO_TARGET,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / (targets != NO_TARGET).sum().clamp(min=1)
