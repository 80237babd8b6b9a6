"""Drop rows of answers that make up too large a share of their question type."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import ClassVar, Literal

from pydantic import Field

from modalign.data.curation.inputs import Row
from modalign.data.curation.minhash import normalise
from modalign.data.curation.operators.base import Judge, Operator, Workplace
from modalign.data.curation.store import Drop


class AnswerBalance(Operator):
    """Cap the share of each answer among the rows of its question type.

    Rows of too frequent answers are ordered by a hash of their id and the seed, and the last ones are dropped:
    the choice is independent of the file's order and the same in every run. A type with k answers cannot get
    below a share of 1 / k; then all its answers become equally frequent (and a single one is kept).

    Attributes:
        max_share: the maximum share of one answer.
        by: the type of a question: its row's `skill`, its first words (`question`), or the skill if there is
            one, else the first words (`auto`).
        words: number of first words.
        min_rows: types with fewer rows are left alone.
        seed: of the hash.
    """

    name: ClassVar[str] = "answer_balance"

    max_share: float = Field(gt=0, le=1)
    by: Literal["auto", "skill", "question"] = "auto"
    words: int = Field(default=2, ge=1)
    min_rows: int = Field(default=20, ge=1)
    seed: int = 0

    @property
    def waits(self) -> bool:
        """Shares are known only after all rows."""
        return True

    def start(self, place: Workplace) -> Judge:
        """Begin."""
        return _Judge(self, place)

    def question_type(self, row: Row) -> str:
        """Return the type of a row's question."""
        if self.by != "question" and row.record.skill:
            return f"skill {row.record.skill!r}"
        if self.by == "skill":
            return "no skill"
        return f"{' '.join(normalise(row.question).split()[: self.words])!r} questions"


class _Judge(Judge):
    def __init__(self, settings: AnswerBalance, place: Workplace) -> None:
        self._settings, self._store = settings, place.store
        self._rows, self._cells = f"{place.prefix}_rows", f"{place.prefix}_cells"
        place.store.execute(
            f"CREATE TABLE IF NOT EXISTS {self._cells} (cell INTEGER PRIMARY KEY, type TEXT,"
            " answer TEXT, rows INTEGER, UNIQUE (type, answer))"
        )
        place.store.execute(
            f"CREATE TABLE IF NOT EXISTS {self._rows} (position INTEGER PRIMARY KEY, cell INTEGER,"
            " rank INTEGER)"
        )

    def judge(self, rows: Sequence[Row]) -> Iterator[Drop]:
        for row in rows:
            answer = normalise(row.record.answer)
            (cell,) = self._store.execute(
                f"INSERT INTO {self._cells} (type, answer, rows) VALUES (?, ?, 1)"
                " ON CONFLICT (type, answer) DO UPDATE SET rows = rows + 1 RETURNING cell",
                (self._settings.question_type(row), answer),
            ).fetchone()
            self._store.execute(
                f"INSERT INTO {self._rows} VALUES (?, ?, ?)",
                (row.position, cell, _rank(row.record.id, self._settings.seed)),
            )
        yield from ()

    def finish(self) -> Iterator[Drop]:
        self._store.execute(
            f"CREATE INDEX IF NOT EXISTS {self._rows}_order ON {self._rows} (cell, rank, position)"
        )
        sizes = self._store.execute(
            f"SELECT type, rows, count(*) FROM {self._cells} WHERE type IN"
            f" (SELECT type FROM {self._cells} GROUP BY type HAVING sum(rows) >= ?)"
            " GROUP BY type, rows ORDER BY type",
            (self._settings.min_rows,),
        )
        for kind, group in groupby(sizes, key=lambda row: row[0]):
            counts = [(rows, answers) for _, rows, answers in group]
            total = sum(rows * answers for rows, answers in counts)
            cap = answer_cap(counts, self._settings.max_share)
            if cap < max(rows for rows, _ in counts):
                yield from self._over(kind, cap, total)

    def _over(self, kind: str, cap: int, total: int) -> Iterator[Drop]:
        cells = self._store.execute(
            f"SELECT cell, answer, rows FROM {self._cells} WHERE type = ? AND rows > ?", (kind, cap)
        ).fetchall()
        for cell, answer, rows in cells:
            reason = f"{answer[:40]!r} answers {rows} of {total} {kind}: {cap} kept"
            surplus = self._store.execute(
                f"SELECT position FROM {self._rows} WHERE cell = ? ORDER BY rank, position"
                " LIMIT -1 OFFSET ?",
                (cell, cap),
            )
            yield from (Drop(position, reason) for (position,) in surplus)


def answer_cap(counts: Sequence[tuple[int, int]], max_share: float) -> int:
    """Compute how many rows an answer may keep so that none exceeds the share of what then remains.

    Args:
        counts: pairs (rows, number of answers with that many).
        max_share: of one answer; raised to 1 / (number of answers) if that is more.
    """
    answers = sum(count for _, count in counts)
    share = max(max_share, 1 / answers)

    def fits(cap: int) -> bool:
        left = sum(min(rows, cap) * count for rows, count in counts)
        return cap <= share * left + 1e-9

    # left / cap falls as cap grows, so the answers that fit are a range starting at the rarest.
    low, high = min(rows for rows, _ in counts), max(rows for rows, _ in counts)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _rank(name: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
