"""Log losses and learning rates to TensorBoard with accelerate's tracker. Nothing leaves the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate.tracking import TensorBoardTracker
from accelerate.utils import is_tensorboard_available

from modalign.errors import UsageError, extra
from modalign.training.settings import TrainSettings

Track = Callable[[dict[str, float], int], None]


def check_tracker(settings: TrainSettings) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        UsageError: how to install it.
    """
    if settings.tracker == "tensorboard" and not is_tensorboard_available():
        raise UsageError(
            f"tracker tensorboard is not installed; {extra('tensorboard')}, or set tracker to none"
        )


def open_tracker(settings: TrainSettings, folder: Path) -> Track | None:
    """Return a function that logs a step's values to ``folder/tensorboard``; None without a tracker."""
    check_tracker(settings)
    if settings.tracker == "none":
        return None
    tracker = TensorBoardTracker("tensorboard", folder)
    tracker.start()
    return lambda values, step: tracker.log(values, step=step)
