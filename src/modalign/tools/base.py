"""The contract of a tool: it takes a medium and returns what it found as JSON-able data.

A tool has a name, a typed signature, a description and a cost. It trains nothing: the language model gets an
image, a recording or a table as the text that tools make of it (surveyed as *tool learning* in
arXiv 2311.07594, section on tool assistance).

``tool(medium, **arguments)`` may raise, hang or return rubbish. modalign never calls a tool directly:
:func:`modalign.tools.guard.call_safely` does, with a deadline and a bound on the result.
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
# Programs and plans select a medium by this argument; a tool must not have one of that name.
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
    """Arguments besides the medium, and the result, in JSON schema.

    Attributes:
        properties: argument name -> its schema.
        required: names without a default.
        result: schema of what is returned.
    """

    properties: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    result: Mapping[str, Any] = field(default_factory=lambda: TEXT)

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Check arguments against the signature: names, and the type in each schema.

        Raises:
            ToolArgumentError: an unknown, missing or mistyped argument; the message lists the known ones.
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
    """The cost of tools: stated or counted parameters, measured seconds, tokens of their text.

    Attributes:
        parameters: total of the tools' models.
        calls: number of calls (for a chain: media described).
        seconds: total duration of the calls.
        tokens: total tokens of the calls' text.
        unstated: names of tools with unknown parameters (servers, callables).
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
    """A tool that takes a medium and returns JSON-able data.

    The result is a text, or a list of texts or objects: ``{"text": ..., "score": 0..1, "box": [x0, y0, x1,
    y1]}`` with score and box if there are any.

    Args:
        name: an identifier, unique in its chain.
        description: what it does, for people and for a language model that chooses tools.
        signature: its arguments besides the medium.
        modalities: modalities that it accepts.
        reads_annotations: whether the result depends on ``Media.annotations`` too.
        timeout: seconds after which a call is abandoned.
        max_characters: maximum of a result; longer ones are cut.
    """

    keeps_deadline: ClassVar[bool] = False  # whether run() itself keeps the timeout

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
            raise UsageError(f"invalid tool name {name!r}: use letters, digits and _ only")
        self.name = name
        self.description = description
        self.signature = signature or Signature()
        if MEDIUM in self.signature.properties:
            raise UsageError(
                f"tool {name!r} has an argument {MEDIUM!r}, which is reserved for the medium"
            )
        self.modalities = modalities or modality_names()
        self.reads_annotations = reads_annotations
        self.timeout = timeout
        self.max_characters = max_characters
        # Kept by the guard: calls so far, their seconds, and how many of the latest in a row hung.
        self.calls = 0
        self.seconds = 0.0
        self.timeouts = 0

    @abstractmethod
    def run(self, medium: Media, **arguments: Any) -> Any:
        """Process a medium; may raise anything. The arguments are those of the signature."""

    @abstractmethod
    def identity(self, hash_file: HashFile) -> Json:
        """Return what results depend on besides medium and arguments: kind, options, weights, version.

        Args:
            hash_file: content hash of a file, cached between runs.
        """

    @property
    def parameters(self) -> int | None:
        """Return the parameters of the tool's models; None if unknown."""
        return None

    def __call__(self, medium: Media, **arguments: Any) -> Any:
        """Check the arguments, then run.

        Raises:
            ToolArgumentError: wrong arguments or modality.
        """
        self.check(medium, arguments)
        return self.run(medium, **arguments)

    def check(self, medium: Media, arguments: Mapping[str, Any]) -> None:
        """Check medium and arguments against the signature.

        Raises:
            ToolArgumentError: wrong arguments or modality.
        """
        if medium.modality not in self.modalities:
            raise ToolArgumentError(
                f"{self.name} takes {', '.join(self.modalities)}, not {medium.modality}"
            )
        self.signature.check(arguments)

    def fingerprint(self, hash_file: HashFile) -> str:
        """Return the hash of :meth:`identity`: equal tools give equal results."""
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
        """Return the tool as an OpenAI function; with several media, ``medium`` (from 0) selects one."""
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
        """Prepare what calls need (a model, a process), outside the deadline and the cost."""

    def close(self) -> None:  # noqa: B027 - most tools hold nothing
        """Release processes and models."""


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
