"""The contract of an operator: its settings, and a judge that is shown rows and names those to drop."""

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
        name_of: a position as people read it: file and row.
        modalities: whose columns hold media.
        progress: how far a slow preparation is.
    """

    store: Store
    media: MediaLibrary
    prefix: str
    name_of: Callable[[int], str]
    modalities: tuple[str, ...] = ("image",)
    progress: Progress = field(default=lambda name, done, total: None)


class Judge:
    """Sees the rows that earlier operators left, in order, batch by batch."""

    def judge(self, rows: Sequence[Row]) -> Iterator[Drop]:
        """Name the rows of this batch to drop."""
        raise NotImplementedError

    def finish(self) -> Iterator[Drop]:
        """Name rows to drop once all have been seen."""
        return iter(())


class Operator(BaseModel, ABC):
    """Settings of an operator; `name` is its name in configurations, cards and tables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version can change its decisions."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Settings that are paths."""

    @property
    def needs(self) -> Need | None:
        """What it wants to know of media: nothing, their content, or what images show."""
        return None

    @property
    def hashes_images(self) -> bool:
        """Whether it compares perceptual hashes."""
        return False

    @property
    def waits(self) -> bool:
        """Whether it decides once it has seen all rows; operators behind it then take another pass."""
        return False

    @abstractmethod
    def start(self, place: Workplace) -> Judge:
        """Begin, or go on after an interruption: what a judge knows is in the working file.

        Raises:
            UsageError: a library, a model or a file that it needs cannot be had.
        """

    def references(self) -> Mapping[str, str]:
        """Files and folders besides the inputs that decide, and their sha256."""
        return {}


@dataclass(frozen=True)
class FilterJudge(Judge):
    """Decides row by row."""

    reason: Callable[[Row], str | None]

    def judge(self, rows: Sequence[Row]) -> Iterator[Drop]:
        """Drop the rows that have a reason."""
        for row in rows:
            reason = self.reason(row)
            if reason is not None:
                yield Drop(row.position, reason)
