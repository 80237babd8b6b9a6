"""From configuration to tools: each kind is imported only when one of it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modalign.data.modalities import modality_names
from modalign.tools.base import Tool
from modalign.tools.block import Count
from modalign.tools.cache import ResultCache
from modalign.tools.chain import ToolChain, Use
from modalign.tools.spec import (
    CallableSpec,
    ChainSpec,
    DigitReaderSpec,
    LayoutSpec,
    McpSpec,
    OcrSpec,
    PipelineSpec,
    SpeechSpec,
    StructureSpec,
    ToolSpec,
)

IMAGE = ("image",)


def build_chain(spec: ChainSpec, count: Count, cache: Path | None = None) -> ToolChain:
    """A chain from its configuration.

    Args:
        spec: tools, template, budget.
        count: tokens of a text, by the language model's own tokenizer.
        cache: folder in which results are remembered; None: in memory.

    Raises:
        UsageError: a tool that cannot be made, or a chain that cannot be used.
    """
    uses = [Use(build_tool(tool), tool.arguments) for tool in spec.tools]
    return ToolChain(uses, spec.template, spec.budget, count, ResultCache(cache))


def build_tool(spec: ToolSpec) -> Tool:  # noqa: PLR0911 - one return per kind
    """A tool from its configuration.

    Raises:
        UsageError: a missing library (the message names the extra), file, model or server.
    """
    match spec:
        case CallableSpec():
            from modalign.tools.callables import callable_tool

            return callable_tool(
                spec.target,
                spec.trusted,
                spec.version,
                reads_annotations=spec.reads_annotations,
                **_settings(spec, None, None, modality_names()),
            )
        case PipelineSpec():
            from modalign.tools.pipelines import pipeline_tool

            return pipeline_tool(spec, _settings(spec, None, None, None))
        case OcrSpec():
            from modalign.tools.ocr import ocr_tool

            says = "Lines of text in a picture, from top to bottom."
            return ocr_tool(spec, _settings(spec, "ocr", says, IMAGE))
        case SpeechSpec():
            from modalign.tools.speech import SpeechTool

            says = "What is said in a recording."
            return SpeechTool(spec.words, **_settings(spec, "speech", says, ("audio",)))
        case McpSpec():
            from modalign.tools.mcp import McpTool

            return McpTool(spec, **_settings(spec, spec.tool, None, modality_names()))
        case DigitReaderSpec():
            from modalign.tools.digits import DigitReader

            says = "Handwritten digits of a scene, with their boxes."
            return DigitReader(**_settings(spec, "digits", says, IMAGE))
        case StructureSpec():
            from modalign.tools.structure import StructureTool

            says = "The scene's objects as the data itself states them."
            return StructureTool(**_settings(spec, "structure", says, modality_names()))
        case LayoutSpec():
            from modalign.tools.layout import LayoutTool

            of = build_tool(spec.of)
            says = f"Where the things are that {of.name} finds: places, relations, counts."
            return LayoutTool(of, spec.grid, spec.say, **_settings(spec, "layout", says, IMAGE))


def _settings(
    spec: ToolSpec, name: str | None, description: str | None, modalities: tuple[str, ...] | None
) -> dict[str, Any]:
    """What every tool is told: the configuration's word, else the kind's."""
    return {
        "name": spec.name or name,
        "description": spec.description or description,
        "modalities": spec.modalities or modalities,
        "timeout": spec.timeout,
        "max_characters": spec.max_characters,
    }
