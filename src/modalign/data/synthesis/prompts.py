"""The prompt of a chat model about an item, and the schema of its answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from modalign.data.records import Media
from modalign.data.synthesis.annotations import From, Item
from modalign.data.synthesis.replies import Pairs
from modalign.errors import UsageError

SIGNATURES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


class Prompt:
    """A prompt template.

    Args:
        path: of a Jinja file (default: the built-in one). Its variables: ``count`` (pairs wanted),
            ``source`` (captions, boxes or structure), ``captions``, ``things`` (label, box as shares of
            the image), ``attributes``, ``groups``, ``row``, ``schema`` (of the answer).
        count: pairs wanted per item.

    Raises:
        UsageError: it cannot be read, or is not a template.
    """

    def __init__(self, path: Path | None, kind: From, count: int) -> None:
        self.name = str(path) if path else "the built-in prompt"
        try:
            if path is None:
                folder = resources.files("modalign.data.synthesis") / "templates"
                self.text = (folder / "prompt.jinja").read_text(encoding="utf-8")
            else:
                self.text = path.read_text(encoding="utf-8")
            environment = ImmutableSandboxedEnvironment(
                undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
            )
            self._template = environment.from_string(self.text)
        except (OSError, UnicodeDecodeError, TemplateError) as error:
            raise UsageError(f"the prompt {self.name} cannot be used: {error}") from None
        self.kind, self.count = kind, count

    def messages(self, item: Item, images: bool = False) -> list[dict[str, Any]]:
        """Build the conversation about one item, optionally with its images."""
        values = {
            "count": self.count,
            "source": self.kind,
            "captions": list(item.captions),
            "things": [(t.label, [round(side, 2) for side in t.box]) for t in item.things],
            "attributes": item.attributes,
            "groups": [list(group) for group in item.groups],
            "row": item.row,
            "schema": json.dumps(Pairs.model_json_schema()),
        }
        try:
            text = self._template.render(values).strip()
        except (TemplateError, TypeError, ValueError) as error:
            known = ", ".join(sorted(values))
            raise UsageError(f"{self.name}: {error}; its variables are {known}") from None
        content: Any = text
        if images:
            content = [{"type": "text", "text": text}, *_images(item.media)]
        return [{"role": "user", "content": content}]


def _images(media: Sequence[Media]) -> list[dict[str, Any]]:
    parts = []
    for medium in media:
        content = medium.read()
        kind = next((kind for start, kind in SIGNATURES if content.startswith(start)), "png")
        data = base64.b64encode(content).decode("ascii")
        url = f"data:image/{kind};base64,{data}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts
