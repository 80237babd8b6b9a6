"""The starter's vision encoder: a SigLIP-shaped tower pretrained without any language.

It learns to predict the digit, if any, in each cell of a scene (with a linear head that is discarded),
only on scenes of the training scans. Its features are linear in what is where, like those of a large
pretrained tower; connectors are compared on how a language model gets to read them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from modalign.starter.scenes import CELL, DIGIT, SIDE, scans, split_scans

SEED = 11
STEPS = 3500
BATCH = 96
LEARNING_RATE = 2e-3
PATCH = 8
CLASSES = 11  # ten digits and "empty"
COPIES = 24  # augmented copies of each training scan


def build_config() -> SiglipVisionConfig:
    """Return the architecture: 4 layers of width 64 on 6 x 6 patches."""
    return SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )


def build_processor() -> SiglipImageProcessorPil:
    """Resize to 48 x 48 and scale to -1..1."""
    return SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        resample=3,
    )


def _augmented(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a slightly rotated, scaled and sheared copy of a scan: (DIGIT, DIGIT) in 0..255."""
    angle, shear = rng.normal(0, 0.10), rng.normal(0, 0.10)
    scale = np.exp(rng.normal(0, 0.06, size=2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag(scale)
    centre = np.array([DIGIT, DIGIT]) / 2 - 0.5
    big = ndimage.zoom(scan.astype(np.float32), DIGIT / 8, order=3)
    return ndimage.affine_transform(big, matrix, centre - matrix @ centre, order=1).clip(0, 255)


def _bank(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return every training scan with augmented copies: images (K, DIGIT, DIGIT) and labels (K,)."""
    rows = split_scans("train")
    images, labels = scans()
    made = [_augmented(images[row], rng) for row in rows for _ in range(COPIES)]
    return np.stack(made).astype(np.float32), np.repeat(labels[rows], COPIES)


def _batch(rng: np.random.Generator, bank: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Draw scenes (BATCH, 3, SIDE, SIDE) in -1..1 and the class of each cell (BATCH, 4)."""
    canvas = np.zeros((BATCH, SIDE, SIDE), dtype=np.float32)
    targets = np.full((BATCH, 4), CLASSES - 1)
    for item in range(BATCH):
        for place in np.flatnonzero(rng.random(4) < 0.6):
            row = rng.integers(len(bank))
            dx, dy = rng.integers(0, CELL - DIGIT + 1, size=2)
            left, top = (place % 2) * CELL + dx, (place // 2) * CELL + dy
            canvas[item, top : top + DIGIT, left : left + DIGIT] = bank[row]
            targets[item, place] = labels[row]
    canvas += rng.normal(0, 6, size=canvas.shape).astype(np.float32)
    pixels = torch.from_numpy(canvas / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)
    return pixels.contiguous(), torch.from_numpy(targets)


def cell_means(features: Tensor) -> Tensor:
    """Return the mean feature of each cell: (B, 36, d) -> (B, 4, d)."""
    side, per_cell = SIDE // PATCH, CELL // PATCH
    B, _, d = features.shape
    grid = features.view(B, side // per_cell, per_cell, side // per_cell, per_cell, d)
    return grid.mean(dim=(2, 4)).reshape(B, 4, d)


def pretrain(
    out: Path, steps: int = STEPS, progress: Callable[[int, int, float], None] | None = None
) -> nn.Module:
    """Train from seed, save a Hugging Face folder, and return the head (for tests)."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    model = SiglipVisionModel(build_config()).train()
    head = nn.Linear(64, CLASSES)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    bank, labels = _bank(rng)
    for step in range(steps):
        pixels, targets = _batch(rng, bank, labels)
        logits = head(cell_means(model(pixel_values=pixels).last_hidden_state))
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, steps, float(loss.detach()))
    model.eval().save_pretrained(out)
    build_processor().save_pretrained(out)
    return head
