"""Tokens become text while they come: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

OPEN = "\ufffd"  # what a decoder writes for the beginning of a character


Decode = Callable[[tuple[int, ...]], str]
REMEMBERED = 2**16  # short runs of tokens


def decoder(tokenizer: Any) -> Decode:
    """A tokenizer's decoding of short runs of ids, without special tokens; it remembers what comes again."""

    @lru_cache(REMEMBERED)
    def decode(ids: tuple[int, ...]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    return decode


class Detokenizer:
    """The text of an answer, a token at a time.

    A token's text depends on the one before it (leading spaces) and characters may take several tokens:
    the tokens since the last whole character are decoded anew, after the piece before them.

    Args:
        decode: as :func:`decoder` makes it.
        stop: texts that end the answer.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self.stop = [text for text in stop if text]
        self.stopped = False
        self._ids: tuple[int, ...] = ()
        self._before = ""  # text of the ids already shown, as far as they are kept
        self._shown = 0  # ids whose text has been given out
        self._held = ""  # may yet turn out to begin a stop text

    def push(self, token: int) -> str:
        """Text that can be shown after this token; ``stopped`` when a stop text is complete."""
        self._ids += (token,)
        text = self._decode(self._ids)
        if text.endswith(OPEN):
            return ""
        new = text[len(self._before) :]
        # The piece just shown stays as context of the next; what is before it is forgotten.
        self._ids = self._ids[self._shown :]
        self._shown, self._before = len(self._ids), self._decode(self._ids)
        return self._checked(new)

    def finish(self) -> str:
        """What was held back, when no further token comes."""
        text = self._decode(self._ids)[len(self._before) :]
        last = self._checked(text) + ("" if self.stopped else self._held)
        self._held = ""
        return last

    def _checked(self, new: str) -> str:
        """New text up to a stop text, less what may yet become one."""
        text = self._held + new
        self._held = ""
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        hold = max((_overlap(text, stop) for stop in self.stop), default=0)
        if hold:
            text, self._held = text[:-hold], text[-hold:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes that a token stands for, also where they are part of a character."""
    text = str(tokenizer.decode([token]))
    if OPEN not in text:
        return text.encode()
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if piece.startswith("<0x") and piece.endswith(">"):  # byte fallback
        return bytes([int(piece[3:-1], 16)])
    table = _byte_level()
    if all(character in table for character in piece):
        return bytes(table[character] for character in piece)
    return text.encode()


def _byte_level() -> dict[str, int]:
    """Byte-level BPE's letters for bytes (GPT-2's table): printable ones are themselves."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in own}
    others = [byte for byte in range(256) if byte not in set(own)]
    return table | {chr(256 + number): byte for number, byte in enumerate(others)}
