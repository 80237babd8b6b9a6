"""A Python callable by import path: find it, read its signature, pass it a medium."""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import PydanticUserError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from modalign.data.images import open_image
from modalign.data.modalities import modality_of
from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.tools.base import Signature

HOW = "give package.module:function or file.py:function"


@dataclass(frozen=True)
class Description:
    """A callable's own description.

    Attributes:
        signature: of the parameters after the medium; types become JSON schemas.
        description: first paragraph of its docstring.
        reads_annotations: its attribute of that name.
        source: sha256 of the file that it is defined in, or "".
    """

    signature: Signature
    description: str
    reads_annotations: bool
    source: str


@dataclass(frozen=True)
class ToolFunction:
    """A callable as a tool sees it.

    Its first parameter receives the medium, as the parameter's annotation says: ``PIL.Image.Image``
    decoded to RGB, ``bytes``, ``str`` or ``pathlib.Path`` a file's path, anything else the
    :class:`~modalign.data.records.Media` itself.

    Attributes:
        function: the callable.
        takes: annotation of its first parameter.
        says: the rest.
    """

    function: Callable[..., Any]
    takes: Any
    says: Description

    def __call__(self, medium: Media, **arguments: Any) -> Any:
        """Call it with the medium in the form it takes."""
        if self.takes is Image.Image:
            return self.function(open_image(medium), **arguments)
        if self.takes is bytes:
            return self.function(medium.read(), **arguments)
        if self.takes in (str, Path):
            with as_file(medium) as path:
                return self.function(self.takes(path), **arguments)
        return self.function(medium, **arguments)


def load(target: str) -> ToolFunction:
    """Import a callable as a tool.

    Raises:
        UsageError: the module, file or callable does not exist, or has no parameter for the medium.
    """
    return inspect_function(target_of(target), target)


def target_of(target: str) -> Callable[..., Any]:
    """Import a callable: ``package.module:function`` or ``file.py:function``.

    Raises:
        UsageError: the module, file or callable does not exist.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise UsageError(f"{target!r} is not a callable: {HOW}")
    found: Any = _module(where)
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{where} has no {part!r} (from {target!r}): {HOW}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{target} is a {type(found).__name__}, which cannot be called: {HOW}")
    called: Callable[..., Any] = found
    return called


def inspect_function(function: Callable[..., Any], name: str) -> ToolFunction:
    """Read a callable's own description.

    Raises:
        UsageError: it has no parameter for the medium.
    """
    try:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    except (NameError, TypeError):  # annotations of what only a type checker imports
        parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in positional:
        raise UsageError(f"{name} has no parameter for the medium: its first one receives it")
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    others = [parameter for parameter in parameters[1:] if parameter.kind in named]
    signature = Signature(
        {parameter.name: _schema(parameter) for parameter in others},
        tuple(p.name for p in others if p.default is inspect.Parameter.empty),
        result={},
    )
    document = (inspect.getdoc(function) or name.rpartition(":")[2]).split("\n\n")[0]
    says = Description(
        signature,
        " ".join(document.split()),
        bool(getattr(function, "reads_annotations", False)),
        _source_hash(function),
    )
    return ToolFunction(function, parameters[0].annotation, says)


@contextmanager
def as_file(medium: Media) -> Iterator[Path]:
    """Provide the medium as a file; bytes are written to a temporary one."""
    if medium.data is None and medium.path is not None:
        yield Path(medium.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        known = modality_of(medium.modality)
        ending = "" if known.inline else "".join(known.endings[:1])
        path = Path(folder) / f"medium{ending}"
        path.write_bytes(medium.read())
        yield path


def encode_medium(medium: Media) -> dict[str, Any]:
    """Return a medium as JSON."""
    data = base64.b64encode(medium.data).decode() if medium.data is not None else None
    return {
        "modality": medium.modality,
        "path": medium.path,
        "data": data,
        "annotations": medium.annotations,
    }


def decode_medium(fields: Mapping[str, Any]) -> Media:
    """Return a medium from JSON."""
    data = fields["data"]
    return Media(
        fields["modality"],
        fields["path"],
        base64.b64decode(data) if data is not None else None,
        fields["annotations"],
    )


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ImportError as error:
            raise UsageError(f"{where} cannot be imported ({error}): {HOW}") from None
    path = Path(where).resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {where}: {HOW}")
    # Registered under its own name, because dataclasses and pickles look up their module there.
    name = f"modalign_tool_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _schema(parameter: inspect.Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    if parameter.annotation is not inspect.Parameter.empty:
        try:
            schema = TypeAdapter(parameter.annotation).json_schema()
        except (PydanticUserError, PydanticInvalidForJsonSchema):  # no JSON form: any value
            schema = {}
    if isinstance(parameter.default, str | int | float | bool):
        schema["default"] = parameter.default
    return schema


def _source_hash(function: Callable[..., Any]) -> str:
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # compiled
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
