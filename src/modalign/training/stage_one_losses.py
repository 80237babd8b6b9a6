"""Losses of connectors' own pre-training, as pure functions.

The three of the Q-Former's stage 1 (BLIP-2, arXiv 2301.12597) read what
:class:`modalign.connectors.perceivers.qformer_stage_one.StageOneOutputs` holds. Hard negatives are
drawn before the matching pass, by ``draw_hard_negatives`` of the same file.

The four of connectors with a code (VQ-VAE, arXiv 1711.00937; VAE, arXiv 1312.6114) give one value
per medium, so that a batch's mean can be taken over all of its parts.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from modalign.connectors.perceivers.qformer_stage_one import NO_TARGET, StageOneOutputs


def soft_targets(item_ids: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(B, B) rows that sum to 1: even over the columns of the same item, smoothed over all."""
    same = (item_ids.unsqueeze(1) == item_ids.unsqueeze(0)).float()
    even = same / same.sum(1, keepdim=True)
    return even * (1 - label_smoothing) + label_smoothing / len(item_ids)


def image_text_contrastive(
    image_to_text: Tensor, text_to_image: Tensor, item_ids: Tensor, label_smoothing: float = 0.1
) -> Tensor:
    """Cross-entropy of the similarities in both directions, averaged.

    Args:
        image_to_text: (B, B), already over the temperature.
        text_to_image: (B, B), likewise.
        item_ids: (B,), equal where rows hold the same item: its texts share the target.
        label_smoothing: mass spread evenly over all columns.
    """
    targets = soft_targets(item_ids, label_smoothing)
    directions = (image_to_text.float(), text_to_image.float())
    forth, back = (functional.cross_entropy(logits, targets) for logits in directions)
    return (forth + back) / 2


def image_text_matching(match_logits: Tensor, match_targets: Tensor) -> Tensor:
    """Cross-entropy of the two-way match head over true and wrong pairs: (P, 2), (P,)."""
    return functional.cross_entropy(match_logits.float(), match_targets)


def image_grounded_captioning(
    caption_logits: Tensor, caption_targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy per word, (B, T, V) against (B, T); positions of -100 do not count.

    The logits stand at the position of the word they predict, so nothing is shifted here. A batch
    without a single word costs nothing.
    """
    count = (caption_targets != NO_TARGET).sum().clamp(min=1)
    total = functional.cross_entropy(
        caption_logits.float().flatten(0, 1),
        caption_targets.flatten(),
        ignore_index=NO_TARGET,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / count


def stage_one_losses(outputs: StageOneOutputs) -> dict[str, Tensor]:
    """The three by name; the paper adds them with equal weights."""
    return {
        "image_text_contrastive": image_text_contrastive(
            outputs.image_to_text, outputs.text_to_image, outputs.item_ids
        ),
        "image_text_matching": image_text_matching(outputs.match_logits, outputs.match_targets),
        "image_grounded_captioning": image_grounded_captioning(
            outputs.caption_logits, outputs.caption_targets
        ),
    }


def reconstruction(rebuilt: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean squared error per value over the features there are: (B, N, d) twice, (B, N)."""
    return _per_place((rebuilt.float() - target.float()).square().mean(-1), mask)


def _per_place(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean of (B, M) values over the places there are."""
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def codebook(inputs: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
    """(B,) squared distance per place, which moves the chosen vectors to the inputs: (B, M, c)."""
    return _per_place((inputs.detach() - vectors).square().sum(-1), mask)


def commitment(inputs: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
    """(B,) the same distance, which moves the inputs to the chosen vectors."""
    return _per_place((inputs - vectors.detach()).square().sum(-1), mask)


def kl_latent(mean: Tensor, log_variance: Tensor, mask: Tensor, free_bits: float = 0.0) -> Tensor:
    """(B,) nats per place of normal distributions (B, M, c) from the standard normal.

    Args:
        mean: (B, M, c).
        log_variance: (B, M, c).
        mask: (B, M) bool.
        free_bits: nats that each value may have for nothing: below, it counts as that much.
    """
    nats = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)
    return _per_place(nats.clamp(min=free_bits).sum(-1), mask)
