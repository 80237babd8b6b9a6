"""The tools that fit some media, as a language model sees and calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.strict_json import loads
from modalign.tools.base import MEDIUM, Tool, ToolArgumentError
from modalign.tools.guard import CallOutcome, call_safely
from modalign.tools.planning.answer import Transcript, bounded_json
from modalign.tools.sandbox.run import Function, ToolFailure

_TYPES = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
    "null": "None",
}


@dataclass
class Toolbox:
    """Tools over the media of one question.

    A call selects the medium by its index, from 0; with one medium this is optional.

    Args:
        tools: tools; those that accept none of the media's modalities are left out.
        media: of the question, in order.
        transcript: records the calls.
        limit: characters of an observation.

    Raises:
        UsageError: no tool takes any of the media.
    """

    tools: Sequence[Tool]
    media: Sequence[Media]
    transcript: Transcript
    limit: int = 4000

    def __post_init__(self) -> None:
        given = {medium.modality for medium in self.media}
        fitting = [tool for tool in self.tools if given & set(tool.modalities)]
        if not fitting:
            taken = sorted({modality for tool in self.tools for modality in tool.modalities})
            raise UsageError(
                f"no tool takes {', '.join(sorted(given)) or 'a question without media'}; they take"
                f" {', '.join(taken)}"
            )
        self.tools = fitting

    def listing(self) -> str:
        """Return the media for a prompt: the modality of each index."""
        return ", ".join(f"{place} ({medium.modality})" for place, medium in enumerate(self.media))

    def schemas(self) -> list[dict[str, Any]]:
        """Return the tools for a chat request."""
        return [tool.to_schema(len(self.media)) for tool in self.tools]

    def signatures(self) -> str:
        """Return the tools as Python signatures with descriptions and results."""
        return "\n\n".join(map(self._signature, self.tools))

    def functions(self) -> Mapping[str, Function]:
        """Return the tools as a program's functions."""
        return {tool.name: Function(self._order(tool), self._function(tool)) for tool in self.tools}

    def observe(self, name: str, arguments: str) -> str:
        """Execute a model's call; return the result, or why the call is malformed."""
        try:
            values = loads(arguments)
        except ValueError as error:
            return self._malformed(name, arguments, f"the arguments are not JSON ({error})")
        if not isinstance(values, dict):
            return self._malformed(name, arguments, "the arguments are not a JSON object")
        tool = next((tool for tool in self.tools if tool.name == name), None)
        if tool is None:
            known = ", ".join(tool.name for tool in self.tools)
            return self._malformed(name, arguments, f"there is no tool {name!r}; there are {known}")
        try:
            outcome = self._call(tool, values)
        except ToolArgumentError as error:
            return self._malformed(name, arguments, str(error))
        return outcome.text if outcome.failed else bounded_json(outcome.result, self.limit)

    def _malformed(self, name: str, arguments: str, why: str) -> str:
        self.transcript.fail("malformed-call", f"{name}({arguments[:200]}): {why}")
        return f"error: {why}"

    def _call(self, tool: Tool, arguments: Mapping[str, Any]) -> CallOutcome:
        """Call a tool with untrusted arguments.

        Raises:
            ToolArgumentError: it does not accept the arguments or the medium.
        """
        values = dict(arguments)
        place = values.pop(MEDIUM, self._default(tool))
        if type(place) is not int or not 0 <= place < len(self.media):
            raise ToolArgumentError(f"medium is {place!r}; there are {self.listing()}")
        tool.check(self.media[place], values)
        outcome = call_safely(tool, self.media[place], **values)
        content = {"tool": tool.name, "medium": place, "arguments": values}
        content |= {name: getattr(outcome, name) for name in ("result", "problem", "message")}
        self.transcript.called(content, outcome.seconds, outcome.problem)
        return outcome

    def _default(self, tool: Tool) -> int:
        """Return the first medium that a tool takes."""
        return next(i for i, medium in enumerate(self.media) if medium.modality in tool.modalities)

    def _order(self, tool: Tool) -> tuple[str, ...]:
        named = tuple(tool.signature.properties)
        return (MEDIUM, *named) if len(self.media) > 1 else (*named, MEDIUM)

    def _function(self, tool: Tool) -> Any:
        def call(arguments: dict[str, Any]) -> Any:
            try:
                outcome = self._call(tool, arguments)
            except ToolArgumentError as error:
                self.transcript.failures["malformed-call"] += 1
                raise ToolFailure(str(error)) from None
            if outcome.failed:
                raise ToolFailure(outcome.message)
            return outcome.result

        return call

    def _signature(self, tool: Tool) -> str:
        signature = tool.signature
        arguments = {
            name: f"{name}: {_type(schema)}" + ("" if name in signature.required else " = ...")
            for name, schema in signature.properties.items()
        }
        arguments[MEDIUM] = f"{MEDIUM}: int = {self._default(tool)}"
        shown = ", ".join(
            arguments[name] for name in self._order(tool) if name != MEDIUM or len(self.media) > 1
        )
        lines = [tool.description.strip()]
        lines += [
            f"{name}: {schema['description']}"
            for name, schema in signature.properties.items()
            if schema.get("description")
        ]
        lines.append(f"Returns {_shape(signature.result)}.")
        text = "\n    ".join(" ".join(line.split()) for line in lines)
        return f'def {tool.name}({shown}) -> {_type(signature.result)}:\n    """{text}"""'


def _type(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema's type in Python's words."""
    kind = schema.get("type")
    name = _TYPES.get(kind, "object") if isinstance(kind, str) else "object"
    items = schema.get("items")
    return f"list[{_type(items)}]" if name == "list" and isinstance(items, Mapping) else name


def _shape(schema: Mapping[str, Any]) -> str:
    """Return a result in words, with the fields of its objects."""
    items = schema.get("items")
    if schema.get("type") == "array" and isinstance(items, Mapping):
        return f"a list of {_shape(items)}"
    fields = schema.get("properties")
    if isinstance(fields, Mapping):
        required = set(schema.get("required", ()))
        named = ", ".join(
            f'"{name}": {_type(inner)}' + ("" if name in required else " (may be missing)")
            for name, inner in fields.items()
        )
        return f"{{{named}}}"
    return _type(schema)
