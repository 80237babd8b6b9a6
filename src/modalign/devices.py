"""Devices by name."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from modalign.errors import UsageError


def device_named(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA if available.

    Raises:
        UsageError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"no device {name!r} here: {first}") from error


def processor() -> str:
    """The kind of processor here, and the vector instructions that torch uses of it."""
    named = platform.processor() or platform.machine()
    known = Path("/proc/cpuinfo")
    for line in known.read_text().splitlines() if known.is_file() else ():
        if line.startswith("model name"):
            named = line.partition(":")[2].strip()
            break
    return f"{named} ({torch.backends.cpu.get_cpu_capability()})"
