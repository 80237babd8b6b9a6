"""Build tools from configuration; each kind is imported only when needed."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from modalign.data.modalities import modality_names
from modalign.tools.base import Tool
from modalign.tools.block import Count
from modalign.tools.cache import ResultCache
from modalign.tools.chain import ToolChain, Use
from modalign.tools.spec import ChainSpec, CommonSpec, LayoutSpec, ToolSpec

_IMAGE = ("image",)
# kind -> its builder, name, description and modalities
_KINDS: dict[str, tuple[str, str | None, str | None, tuple[str, ...] | None]] = {
    "callable": ("callables:callable_tool", None, None, modality_names()),
    "pipeline": ("pipelines:pipeline_tool", None, None, None),
    "ocr": ("ocr:ocr_tool", "ocr", "Lines of text in a picture, from top to bottom.", _IMAGE),
    "speech": ("speech:SpeechTool", "speech", "What is said in a recording.", ("audio",)),
    "mcp": ("mcp:McpTool", None, None, modality_names()),
    "digit_reader": (
        "digits:DigitReader",
        "digits",
        "Handwritten digits of a scene, with their boxes.",
        _IMAGE,
    ),
    "structure": (
        "structure:StructureTool",
        "structure",
        "The scene's objects as annotated in the data.",
        modality_names(),
    ),
    "table": (
        "whole_table:TableTool",
        "table",
        "A table as a whole, written as {form}.",
        ("table",),
    ),
    "layout": (
        "layout:LayoutTool",
        "layout",
        "The positions of what {of.name} finds: places, relations, counts.",
        _IMAGE,
    ),
}


def build_chain(spec: ChainSpec, count: Count, cache: Path | None = None) -> ToolChain:
    """Return a chain from its configuration.

    Args:
        spec: tools, template, budget.
        count: tokens of a text, by the language model's own tokenizer.
        cache: folder of cached results; None: in memory.

    Raises:
        UsageError: a tool cannot be built, or the chain is unusable.
    """
    uses = [Use(build_tool(tool), tool.arguments) for tool in spec.tools]
    return ToolChain(uses, spec.template, spec.budget, count, ResultCache(cache))


def build_tool(spec: ToolSpec) -> Tool:
    """Build a tool from its configuration, with the kind's defaults.

    Raises:
        UsageError: a missing library (the message names the extra), file, model or server.
    """
    maker, name, description, modalities = _KINDS[spec.kind]
    given: dict[str, Any] = dict(spec)
    own = {key: given[key] for key in given.keys() - CommonSpec.model_fields.keys() - {"kind"}}
    if isinstance(spec, LayoutSpec):
        own["of"] = build_tool(spec.of)
    tool: Tool = resolve_name(f"modalign.tools.{maker}")(
        **own,
        name=spec.name or name,
        description=spec.description or (description and description.format(**own)),
        modalities=spec.modalities or modalities,
        timeout=spec.timeout,
        max_characters=spec.max_characters,
    )
    return tool
