"""The contract of an operator: its settings, and a judge that sees rows and returns those to drop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from modalign.data.curation.inputs import Row
from modalign.data.curation.media import MediaLibrary, Need
from modalign.data.curation.store import Drop, Store
from modalign.progress import Progress


@dataclass(frozen=True)
class Workplace:
    """What a judge may use.

    Attributes:
        store: the working file; its tables are named with `prefix`.
        media: facts on media.
        prefix: of this operator's tables.
        name_of: formats a position as file and row.
        modalities: the modalities whose columns hold media.
        progress: called with the progress of a slow preparation.
    """

    store: Store
    media: MediaLibrary
    prefix: str
    name_of: Callable[[int], str]
    modalities: tuple[str, ...] = ("image",)
    progress: Progress = field(default=lambda name, done, total: None)


class Judge:
    """Sees the rows that earlier operators kept, in order, batch by batch."""

    def judge(self, rows: Sequence[Row]) -> Iterator[Drop]:
        """Return the rows of this batch to drop."""
        raise NotImplementedError

    def finish(self) -> Iterator[Drop]:
        """Return rows to drop after all have been seen."""
        return iter(())


class Operator(BaseModel, ABC):
    """Settings of an operator; `name` is its name in configurations, cards and tables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages whose version can change its decisions."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Settings that are paths."""

    @property
    def needs(self) -> Need | None:
        """What it needs to know about media: nothing, their content, or what images show."""
        return None

    @property
    def hashes_images(self) -> bool:
        """Whether it compares perceptual hashes."""
        return False

    @property
    def waits(self) -> bool:
        """Whether it decides only after all rows; later operators then need another pass."""
        return False

    @abstractmethod
    def start(self, place: Workplace) -> Judge:
        """Create the judge, or restore it after an interruption: its state is in the working file.

        Raises:
            UsageError: a library, model or file that it needs is not available.
        """

    def references(self) -> Mapping[str, str]:
        """Other files and folders that decisions depend on, with their sha256."""
        return {}


@dataclass(frozen=True)
class FilterJudge(Judge):
    """A judge that decides row by row."""

    reason: Callable[[Row], str | None]

    def judge(self, rows: Sequence[Row]) -> Iterator[Drop]:
        """Drop the rows that have a reason."""
        for row in rows:
            reason = self.reason(row)
            if reason is not None:
                yield Drop(row.position, reason)
