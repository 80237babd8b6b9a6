"""Turn tokens into text as they come: only whole characters, and nothing of a stop text.

What a token adds to a text depends on the text before it (leading spaces), and a character may have several
tokens. So a token is never decoded alone: the pieces of all tokens concatenate to the text, as characters and
as bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

OPEN = "\ufffd"  # what a decoder writes for an incomplete character
REMEMBERED = 2**16  # cached runs of tokens
CONTEXT = 8  # prompt tokens that an answer is decoded with


class Piece(NamedTuple):
    """What a token adds: if a character has several tokens, the last has its text, and each its bytes."""

    text: str
    data: bytes


class Spelling:
    """Cached decoding of short runs of ids, without special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()  # tokens that decoding skips
        self.special = frozenset(int(token) for token, about in added if about.special)
        self.decode = lru_cache(REMEMBERED)(self._decode)
        self.named = lru_cache(REMEMBERED)(self._named)
        self._anchor = tuple(tokenizer("a", add_special_tokens=False)["input_ids"])

    def _decode(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _named(self, token: int, first: bool) -> Piece:
        """Return a token's name among alternatives, and its bytes.

        The name is the text it would add, the name of a special token, or ``bytes:`` and the bytes in
        hexadecimal if they are not whole characters (as in OpenAI's completions).

        Args:
            token: an id.
            first: whether no text precedes it.
        """
        if token in self.special:
            name = str(self.tokenizer.decode([token], skip_special_tokens=False))
            return Piece(name, name.encode())
        before = () if first else self._anchor
        text = self.decode((*before, token))[len(self.decode(before)) if before else 0 :]
        if OPEN not in text:
            return Piece(text, text.encode())
        data = token_bytes(self.tokenizer, token)
        try:
            return Piece(data.decode(), data)
        except UnicodeDecodeError:
            return Piece("bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data)

    def stop_ids(self, stop: Sequence[str]) -> frozenset[int]:
        """Return the special tokens named by stop texts, which never show in the text."""
        added = self.tokenizer.added_tokens_encoder
        return frozenset(int(added[text]) for text in stop if text in added)


class Speller:
    """Computes what each token adds to a text.

    The tokens since the last whole character are decoded again, after the piece before them.

    Args:
        spelling: the tokenizer's spelling.
        before: ids that precede the text.
    """

    def __init__(self, spelling: Spelling, before: Sequence[int] = ()) -> None:
        self._spelling = spelling
        tail = [token for token in before[-CONTEXT:] if token not in spelling.special]
        self._ids = tuple(tail)
        # The text of kept ids that was delivered; an incomplete character is delivered with its end.
        self._before = spelling.decode(self._ids).rstrip(OPEN) if tail else ""
        self._told = len(tail)
        self._waiting: list[int] = []

    def push(self, token: int) -> list[Piece]:
        """Add a token; return the pieces of all tokens that now form whole characters."""
        if token in self._spelling.special:
            self._waiting.append(token)
            return [] if self._open else self._tell("")
        self._ids += (token,)
        self._waiting.append(token)
        text = self._spelling.decode(self._ids)
        if text.endswith(OPEN):
            return []
        new = text[len(self._before) :]
        if new:  # the latest piece stays as context for the next; earlier ones are dropped
            self._ids = self._ids[self._told :]
            self._before = self._spelling.decode(self._ids)
        self._told = len(self._ids)
        return self._tell(new)

    def finish(self) -> list[Piece]:
        """Return the rest at the end."""
        if not self._waiting:
            return []
        return self._tell(self._spelling.decode(self._ids)[len(self._before) :])

    @property
    def _open(self) -> bool:
        return len(self._ids) > self._told

    def _tell(self, new: str) -> list[Piece]:
        tokens, self._waiting = self._waiting, []
        if len(tokens) == 1:
            return [Piece(new, new.encode())]
        known = [
            b"" if token in self._spelling.special else token_bytes(self._spelling.tokenizer, token)
            for token in tokens[:-1]
        ]
        begin, whole = b"".join(known), new.encode()
        if not whole.startswith(begin):  # bytes that do not form a character
            known, begin = [b""] * len(known), b""
        return [*(Piece("", data) for data in known), Piece(new, whole[len(begin) :])]


class Detokenizer:
    """The text of an answer, a token at a time, up to a stop text.

    Args:
        spelling: the tokenizer's spelling.
        stop: texts that end the answer.
        before: ids that precede the answer.
    """

    def __init__(
        self, spelling: Spelling, stop: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        self._speller = Speller(spelling, before)
        self.stop = [text for text in stop if text]
        self.stopped = False
        self._held = ""  # may be the beginning of a stop text
        self._unshown: deque[Piece] = deque()
        self._room = 0  # characters shown whose pieces were not delivered

    def read(self, ids: Sequence[int]) -> list[Piece]:
        """Return the pieces of a prompt before the answer; an incomplete character comes with the answer."""
        return [piece for token in ids for piece in self._speller.push(token)]

    def push(self, token: int) -> tuple[str, list[Piece]]:
        """Return the text to show after this token, and the pieces of completely shown tokens.

        ``stopped`` is set when a stop text is complete.
        """
        return self._shown(self._speller.push(token))

    def finish(self) -> tuple[str, list[Piece]]:
        """Return what was held back, at the end."""
        text, pieces = self._shown(self._speller.finish())
        if not self.stopped:
            text, self._held = text + self._held, ""
            pieces += self._unshown
        return text, pieces

    def _shown(self, pieces: Sequence[Piece]) -> tuple[str, list[Piece]]:
        text = self._checked("".join(piece.text for piece in pieces))
        self._unshown += pieces
        self._room += len(text)
        told: list[Piece] = []
        parts: list[Piece] = []  # of an incomplete character, delivered with its end
        while self._unshown and len(self._unshown[0].text) <= self._room:
            piece = self._unshown.popleft()
            self._room -= len(piece.text)
            parts.append(piece)
            if piece.text or not piece.data:
                told += parts
                parts = []
        self._unshown.extendleft(reversed(parts))
        if self.stopped and self._room:  # the stop text begins inside a token
            rest = self._unshown[0].text[: self._room]
            told.append(Piece(rest, rest.encode()))
        return text, told

    def _checked(self, new: str) -> str:
        """Return new text up to a stop text, without a possible beginning of one."""
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
    """Return the length of the longest suffix of ``text`` that is a prefix of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """Return a token's bytes, even if they are part of a character."""
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


@lru_cache
def _byte_level() -> dict[str, int]:
    """Return byte-level BPE's letters for bytes (GPT-2's table); printable ones map to themselves."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in own}
    others = [byte for byte in range(256) if byte not in set(own)]
    return table | {chr(256 + number): byte for number, byte in enumerate(others)}
