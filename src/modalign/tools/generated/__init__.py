"""modalign's own generators: local, free, the same bytes for the same prompt; see :mod:`..generators`."""

from modalign.tools.generated import picture, plot, sound

__all__ = ["picture", "plot", "sound"]
