"""Draws that depend on nothing but their numbers, so that a resumed run repeats them."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def rng(*of: int | str) -> np.random.Generator:
    """Return numpy's generator of these numbers and words."""
    return np.random.default_rng([_number(each) for each in of])


def number(*of: int | str) -> int:
    """Return a seed made of these numbers and words."""
    return int(np.random.SeedSequence([_number(each) for each in of]).generate_state(1)[0])


def generator(*of: int | str) -> torch.Generator:
    """Return torch's generator of these numbers and words."""
    return torch.Generator().manual_seed(number(*of))


def _number(of: int | str) -> int:
    return zlib.crc32(of.encode()) if isinstance(of, str) else of
