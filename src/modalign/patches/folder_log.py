"""The log of a patched folder: one JSON line per event, append-only.

A change of the weights has two lines: ``begun``, with everything that is about to change, before the
first weight is replaced, and ``done`` (or ``undone``) afterwards. A ``begun`` without its second line is
a change that was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modalign.errors import DataError
from modalign.patches.header import now


class Applied(BaseModel):
    """A patch applied to a folder: its name and hash, its copy's file name, its tensors' names in the files.

    A structure's tensors are those of the unpruned model.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    sha256: str
    file: str
    tensors: dict[str, str]
    kind: Literal["change", "structure"] = "change"
    time: str = ""


class TensorChange(BaseModel):
    """Hashes of one tensor in the files before and after a change; empty if it does not exist then."""

    before: str
    after: str


class Event(BaseModel):
    """One line of the log.

    Attributes:
        number: of the change, from 1.
        state: of the change.
        action: apply or remove; only in ``begun``, as are the fields below.
        patches: name and hash of the patches applied or removed.
        stack: all patches that are applied afterwards, lowest first.
        tensors: every changed tensor of the files.
    """

    time: str
    number: int
    state: Literal["begun", "done", "undone"]
    action: Literal["apply", "remove"] | None = None
    patches: dict[str, str] = Field(default_factory=dict)
    stack: list[Applied] = Field(default_factory=list)
    tensors: dict[str, TensorChange] = Field(default_factory=dict)


class Log:
    """What happened to a folder.

    Raises:
        DataError: a line cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = _read(path)

    @property
    def pending(self) -> Event | None:
        """The change that was begun and neither done nor undone."""
        last = self.events[-1] if self.events else None
        return last if last is not None and last.state == "begun" else None

    def finished(self) -> list[Event]:
        """The ``begun`` lines of all changes that were done, in order."""
        done = {event.number for event in self.events if event.state == "done"}
        return [each for each in self.events if each.state == "begun" and each.number in done]

    @property
    def stack(self) -> list[Applied]:
        """The patches applied, lowest first; a pending change is not counted."""
        finished = self.finished()
        return finished[-1].stack if finished else []

    def hashes(self) -> dict[str, str]:
        """The hash that every tensor that was ever changed must have now."""
        return {name: c.after for event in self.finished() for name, c in event.tensors.items()}

    def begin(
        self,
        action: Literal["apply", "remove"],
        patches: Iterable[Applied],
        stack: list[Applied],
        tensors: dict[str, TensorChange],
    ) -> int:
        """Log what is about to happen; return its number."""
        number = self.events[-1].number + 1 if self.events else 1
        named = {each.name: each.sha256 for each in patches}
        event = Event(time=now(), number=number, state="begun", action=action)
        self._append(
            event.model_copy(update={"patches": named, "stack": stack, "tensors": tensors})
        )
        return number

    def end(self, number: int, state: Literal["done", "undone"]) -> None:
        """Log how it went."""
        self._append(Event(time=now(), number=number, state=state))

    def _append(self, event: Event) -> None:
        self.path.parent.mkdir(exist_ok=True)
        line = json.dumps(event.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)
        with self.path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # a torn line of an interrupted write
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.events.append(event)


def _read(path: Path) -> list[Event]:
    if not path.is_file():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")  # a last line without its end was never written
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(Event.model_validate_json(line))
        except ValidationError as error:
            raise DataError(
                f"{path}:{number} is not an entry of the log; restore the file"
            ) from error
    return events
