"""How many positions a language model reads: its configuration's number holds in every verb.

Beyond it a table of learnt positions has no entry, and rotary ones were never trained: both are refused. A model
that reads further says so in its configuration (``max_position_embeddings``, with its scaling).
"""

from __future__ import annotations

from typing import Any

from modalign.errors import DataError, UsageError

UNLIMITED = 2**20  # what a server takes of a model that limits nothing
_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")


class TooLongError(DataError):
    """A prompt leaves no room for its answer."""


def declared_length(config: Any) -> int | None:
    """Positions of prompt and answer together; None where a configuration does not limit them."""
    of_text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = (getattr(of_text, name, None) for name in _NAMES)
    return next((number for number in found if isinstance(number, int) and number > 0), None)


def served_length(asked: int | None, declared: int | None) -> int:
    """Positions of prompt and answer that a server takes: as asked for, or as many as the model reads.

    Raises:
        UsageError: more are asked for than that.
    """
    if asked is not None and declared is not None and asked > declared:
        raise UsageError(
            f"--max-length {asked} is more than the {declared} positions that the model reads"
        )
    return asked or declared or UNLIMITED


def check_length(length: int, limit: int | None, where: str, answer: int = 1) -> None:
    """Refuse a prompt that leaves no room for its answer.

    Args:
        length: tokens of the prompt, what stands for its media included.
        limit: what the model reads (:func:`declared_length`).
        where: file and row, or whatever finds the prompt.
        answer: tokens that come after it.

    Raises:
        TooLongError: with both numbers.
    """
    if limit is not None and length + answer > limit:
        raise TooLongError(
            f"{where}: {length} tokens of prompt (media included) and {answer} of answer are more than the "
            f"{limit} positions that the model reads; shorten the text, or give fewer or smaller media"
        )
