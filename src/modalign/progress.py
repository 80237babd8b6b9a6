"""How far a piece of work is: what every long step tells whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # name, done, total
