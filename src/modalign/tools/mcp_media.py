"""Choose the argument of a server's tool for the medium, and its form."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.tools.functions import as_file

Form = Literal["path", "base64", "data_url"]
# Words in an argument's name that show how it takes a medium, the most certain first.
_FORMS: tuple[tuple[Form, tuple[str, ...]], ...] = (
    ("base64", ("base64", "b64", "bytes", "blob")),
    ("data_url", ("url", "uri")),
    ("path", ("path", "file", "filename")),
    ("base64", ("image", "audio", "video", "picture", "data", "content")),
)


def media_place(
    schema: Mapping[str, Any], tool: str, argument: str | None = None, form: Form | None = None
) -> tuple[str, Form]:
    """Return the argument that takes the medium, and in which form.

    The configuration takes precedence. Else it is the argument whose schema has ``contentEncoding:
    base64`` or ``format: uri``, else the one whose name has a word like path, file, url, image or data;
    else the only required text. The form follows from the same criteria; the default is a path.

    Raises:
        UsageError: nothing matches, or the given argument does not exist.
    """
    texts = {
        name: one
        for name, one in schema.get("properties", {}).items()
        if one.get("type", "string") == "string"
    }
    if argument is not None:
        if argument not in schema.get("properties", {}):
            known = ", ".join(schema.get("properties", {})) or "none"
            raise UsageError(f"tool {tool!r} has no argument {argument!r}; it has {known}")
        texts = {argument: texts.get(argument, {})}
    signs = {name: _sign(name, one) for name, one in texts.items()}
    ranked = sorted((rank, name, likely) for name, (rank, likely) in signs.items())
    only = [name for name in schema.get("required", ()) if name in texts]
    if argument is not None or (ranked and ranked[0][0] < len(_FORMS)):
        _, name, likely = ranked[0]
    elif len(only) == 1:
        name, likely = only[0], "path"
    else:
        raise UsageError(
            f"the input schema of tool {tool!r} does not show where the medium goes "
            f"(arguments: {', '.join(texts) or 'none'}): set media_argument and media_as"
        )
    return name, form or likely


def _sign(name: str, schema: Mapping[str, Any]) -> tuple[int, Form]:
    """Return how certain it is that an argument takes a medium (0: most), and the form."""
    if schema.get("contentEncoding") == "base64":
        return -1, "base64"
    if schema.get("format") == "uri":
        return -1, "data_url"
    words = name.lower().replace("-", "_").split("_")
    for rank, (form, signs) in enumerate(_FORMS):
        if any(sign in words for sign in signs):
            return rank, form
    return len(_FORMS), "path"


@contextmanager
def written(medium: Media, form: Form) -> Iterator[str]:
    """Provide the medium as that argument's value; bytes that need a path are in a temporary file."""
    if form == "path":
        with as_file(medium) as path:
            yield str(path.resolve())
        return
    encoded = base64.b64encode(medium.read()).decode()
    if form == "data_url":
        guessed, _ = mimetypes.guess_type(medium.path or "")
        encoded = f"data:{guessed or 'application/octet-stream'};base64,{encoded}"
    yield encoded
