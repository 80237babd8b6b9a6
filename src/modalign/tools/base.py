"""The contract of a tool: it looks at a medium and says what it found, as JSON-able data.

A tool has a name, a typed signature, a description and a cost. It trains nothing: what the language model
gets of an image, a recording or a table is the text that tools made of it (surveyed as *tool learning* in
arXiv 2311.07594, section on tool assistance).

``tool(medium, **arguments)`` may raise, hang or return rubbish. Nothing in modalign calls a tool that
way: :func:`modalign.tools.guard.call_safely` does, with a deadline and a bound on what comes back.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from modalign.data.modalities import modality_names
from modalign.data.records import Media
from modalign.errors import ModalignError, UsageError

Json = None | bool | int | float | str | list[Any] | dict[str, Any]
HashFile = Callable[[Path], str]

TEXT: Mapping[str, Any] = {"type": "string"}
LINES: Mapping[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "score": {"type": "number"},
            "box": {"type": "array", "items": {"type": "number"}},
        },
        "required": ["text"],
    },
}
# A program or a plan says which medium it means by this argument; no tool may have one of its own.
MEDIUM = "medium"
TIMEOUT = 60.0  # seconds
MAX_CHARACTERS = 20_000


class ToolError(ModalignError):
    """A tool call without a result; ``kind`` says why, in one word for counts."""

    kind: ClassVar[str] = "raised"


class ToolArgumentError(ToolError):
    """Arguments that the tool's signature does not allow, or a medium of a modality it does not take."""

    kind = "arguments"


class ToolTimeoutError(ToolError):
    """No answer before the deadline."""

    kind = "timeout"


class ToolDiedError(ToolError):
    """The process that a tool runs in has ended."""

    kind = "died"


class NotTextError(ToolError):
    """An answer that is not text: binary data, or objects without a JSON form."""

    kind = "not-text"


@dataclass(frozen=True)
class Signature:
    """Arguments beside the medium, and the result, in JSON schema.

    Attributes:
        properties: argument name -> its schema.
        required: names without a default.
        result: schema of what is returned.
    """

    properties: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    result: Mapping[str, Any] = field(default_factory=lambda: TEXT)

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Hold arguments against the signature: names, and the type each schema states.

        Raises:
            ToolArgumentError: an unknown, missing or mistyped argument; the message names what is known.
        """
        known = ", ".join(self.properties) or "none"
        if unknown := sorted(set(arguments) - set(self.properties)):
            raise ToolArgumentError(f"unknown argument {unknown[0]!r}; known: {known}")
        if missing := [name for name in self.required if name not in arguments]:
            raise ToolArgumentError(f"argument {missing[0]!r} is missing; known: {known}")
        for name, value in arguments.items():
            wanted = self.properties[name].get("type")
            if isinstance(wanted, str) and not _is_of_type(value, wanted):
                raise ToolArgumentError(
                    f"argument {name!r} is a {type(value).__name__}, not of type {wanted}"
                )


@dataclass
class ToolCost:
    """What tools cost: stated or counted parameters, measured seconds, tokens of their text.

    Attributes:
        parameters: of the tools' models together.
        calls: how often they ran (for a chain: media described).
        seconds: that the calls took, together.
        tokens: that the language model reads of the calls' text, together.
        unstated: names of tools whose parameters nobody can count (a server's, a callable's).
    """

    parameters: int = 0
    calls: int = 0
    seconds: float = 0.0
    tokens: int = 0
    unstated: tuple[str, ...] = ()

    @property
    def mean_seconds(self) -> float:
        """Seconds of one call."""
        return self.seconds / self.calls if self.calls else 0.0

    @property
    def mean_tokens(self) -> float:
        """Tokens of one call's text."""
        return self.tokens / self.calls if self.calls else 0.0


class Tool(ABC):
    """Something that looks at a medium and answers with JSON-able data.

    The result is a text, or a list of texts or objects: ``{"text": ..., "score": 0..1, "box": [x0, y0, x1,
    y1]}`` with score and box where there are any.

    Args:
        name: an identifier, unique in its chain.
        description: what it does, for people and for a language model that chooses tools.
        signature: its arguments beside the medium.
        modalities: of the media it takes.
        reads_annotations: whether the result depends on ``Media.annotations`` too.
        timeout: seconds after which a call is given up.
        max_characters: of a result; what is longer is cut.
    """

    keeps_deadline: ClassVar[bool] = False  # whether run() itself ends at the timeout

    def __init__(
        self,
        name: str,
        description: str,
        *,
        signature: Signature | None = None,
        modalities: tuple[str, ...] | None = None,
        reads_annotations: bool = False,
        timeout: float = TIMEOUT,
        max_characters: int = MAX_CHARACTERS,
    ) -> None:
        if not name.isidentifier():
            raise UsageError(f"a tool is called {name!r}: letters, digits and _ only")
        self.name = name
        self.description = description
        self.signature = signature or Signature()
        if MEDIUM in self.signature.properties:
            raise UsageError(
                f"tool {name!r} has an argument {MEDIUM!r}, which stands for the medium itself"
            )
        self.modalities = modalities or modality_names()
        self.reads_annotations = reads_annotations
        self.timeout = timeout
        self.max_characters = max_characters
        # Kept by the guard: calls so far, their seconds, and how many of the last ones in a row hung.
        self.calls = 0
        self.seconds = 0.0
        self.timeouts = 0

    @abstractmethod
    def run(self, medium: Media, **arguments: Any) -> Any:
        """Look at a medium; may raise anything. The arguments are those of the signature."""

    @abstractmethod
    def identity(self, hash_file: HashFile) -> Json:
        """What the results depend on besides medium and arguments: kind, options, weights, version.

        Args:
            hash_file: content hash of a file, remembered between runs.
        """

    @property
    def parameters(self) -> int | None:
        """Of the tool's models; None where nobody can count them."""
        return None

    def __call__(self, medium: Media, **arguments: Any) -> Any:
        """Check the arguments, then run.

        Raises:
            ToolArgumentError: wrong arguments or modality.
        """
        self.check(medium, arguments)
        return self.run(medium, **arguments)

    def check(self, medium: Media, arguments: Mapping[str, Any]) -> None:
        """Hold medium and arguments against the signature.

        Raises:
            ToolArgumentError: wrong arguments or modality.
        """
        if medium.modality not in self.modalities:
            raise ToolArgumentError(
                f"{self.name} takes {', '.join(self.modalities)}, not {medium.modality}"
            )
        self.signature.check(arguments)

    def fingerprint(self, hash_file: HashFile) -> str:
        """Hash of :meth:`identity`: equal tools give equal results."""
        return json_hash(self.identity(hash_file))[:32]

    def cost(self) -> ToolCost:
        """Return what it has cost so far in this process."""
        counted = self.parameters
        return ToolCost(
            parameters=counted or 0,
            calls=self.calls,
            seconds=self.seconds,
            unstated=() if counted is not None else (self.name,),
        )

    def to_schema(self, media: int = 1) -> dict[str, Any]:
        """The tool as an OpenAI function; with several media, ``medium`` (from 0) says which."""
        properties = {name: dict(schema) for name, schema in self.signature.properties.items()}
        required = list(self.signature.required)
        if media > 1:
            which = {"type": "integer", "minimum": 0, "maximum": media - 1}
            properties = {MEDIUM: {**which, "description": "which medium, from 0"}, **properties}
            required = [MEDIUM, *required]
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": properties,
                    "required": required,
                    "additionalProperties": False,
                },
            },
        }

    def load(self) -> None:  # noqa: B027 - most tools need nothing
        """Make ready what calls need (a model, a process): before the deadline runs, charged to nobody."""

    def close(self) -> None:  # noqa: B027 - most tools hold nothing
        """Let go of processes and models."""


def json_hash(value: Json) -> str:
    """Return the sha256 of JSON-able data."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_of_type(value: Any, wanted: str) -> bool:
    if wanted in {"integer", "number"} and isinstance(value, bool):
        return False
    types: dict[str, type | tuple[type, ...]] = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "array": (list, tuple),
        "object": dict,
        "null": type(None),
    }
    return wanted not in types or isinstance(value, types[wanted])
