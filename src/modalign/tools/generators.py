"""Generators: what makes a medium from a prompt in words, as tools take a medium and give words.

A generator is a function ``generator(prompt: str) -> Made`` without side effects that gives the same bytes for the
same prompt. modalign's own (:mod:`modalign.tools.generated`) are free and local; third parties add theirs by entry
points in the group ``modalign.generators``, or name a function: ``package.module:function``, ``file.py:function``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from modalign.data.modalities import modality_names
from modalign.errors import UsageError, first_line
from modalign.named import Named
from modalign.tools.base import TIMEOUT, ToolArgumentError, ToolError
from modalign.tools.functions import target_of
from modalign.tools.guard import in_time

generator = Named("generator", "modalign.generators", "modalign.tools.generated")

LONGEST = 500  # characters of a prompt
PROMPT = "prompt"


class GeneratorError(ToolError):
    """The generator cannot make what the prompt asks for; the message is for the model that asked."""

    kind: ClassVar[str] = "failed"


@dataclass(frozen=True)
class Made:
    """What a generator made.

    Attributes:
        modality: ``image``, ``audio``, ...
        suffix: of a file with it: ``.png``.
        data: the encoded bytes.
        shows: what it is, in a few words.
    """

    modality: str
    suffix: str
    data: bytes
    shows: str


@dataclass(frozen=True)
class Generator:
    """A generator with what a model is told of it.

    Attributes:
        name: by which it is called.
        function: ``prompt -> Made``.
        description: a sentence.
        timeout: seconds.
    """

    name: str
    function: Callable[[str], Made]
    description: str
    timeout: float = TIMEOUT

    def schema(self) -> dict[str, Any]:
        """Return it as an OpenAI function of one argument."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": {PROMPT: {"type": "string"}},
                    "required": [PROMPT],
                    "additionalProperties": False,
                },
            },
        }

    def make(self, arguments: dict[str, Any]) -> Made:
        """Make a medium from a call's arguments.

        Raises:
            ToolArgumentError: not exactly one prompt, a text with something in it.
            ToolError: it failed, hung or made something else; the message says what.
        """
        if unknown := sorted(set(arguments) - {PROMPT}):
            raise ToolArgumentError(f"unknown argument {unknown[0]!r}; known: {PROMPT}")
        prompt = arguments.get(PROMPT)
        if not isinstance(prompt, str) or not prompt.strip():
            raise ToolArgumentError(f"argument {PROMPT!r} must be a text with something in it")
        if len(prompt) > LONGEST:
            raise ToolArgumentError(f"the prompt has {len(prompt)} characters, at most {LONGEST}")
        try:
            made = in_time(lambda: self.function(prompt), self.name, self.timeout)
        except ToolError:
            raise
        except Exception as error:
            raise GeneratorError(
                f"{self.name} failed ({type(error).__name__}: {first_line(error)})"
            ) from error
        if (
            not isinstance(made, Made)
            or made.modality not in modality_names()
            or not isinstance(made.data, bytes)
            or not made.data
        ):
            raise GeneratorError(f"{self.name} made nothing that can be used")
        return made


def generators(names: Sequence[str] = ()) -> list[Generator]:
    """Return generators by name or by import path; without names, modalign's own and third parties'.

    Raises:
        UsageError: an unknown name, a function that cannot be loaded, or two of one name.
    """
    found = [_named(name) for name in names or generator.names()]
    known = [each.name for each in found]
    if twice := next((name for name in known if known.count(name) > 1), None):
        raise UsageError(f"two generators are called {twice!r}")
    return found


def _named(name: str) -> Generator:
    if ":" in name:
        function = target_of(name)
        name = Path(name.rpartition(":")[2]).name.rpartition(".")[2]
    else:
        function = generator.entry(name).function
    inner = getattr(function, "func", function)  # of a partial
    said = (inspect.getdoc(inner) or name).split("\n\n")[0]
    return Generator(name, function, " ".join(said.split()))
