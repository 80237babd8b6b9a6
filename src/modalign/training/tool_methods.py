"""Tool chains as methods: the modality becomes text, and no connector is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from modalign.errors import UsageError
from modalign.training.settings import LLMMode, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from modalign.models.collation import Entry
    from modalign.tools.chain import ToolChain
    from modalign.training.sources import Parts

PREFIX = "tool:"
TEXT_ONLY = "text_only"


@dataclass(frozen=True)
class ToolMethod:
    """A tool method's facts, under the names of a connector's class.

    Attributes:
        chain: name of the tool chain; empty: the control that reads only the text.
        llm: how the language model is tuned on the chain's text.
    """

    chain: str
    llm: LLMMode

    name: ClassVar[str] = "tools"
    family: ClassVar[str] = "tool"
    enters: ClassVar[str] = "text"
    token_formula: ClassVar[str] = "lines"
    parameter_text: ClassVar[str] = "the tools'"
    papers: ClassVar[tuple[str, ...]] = ("LENS (arXiv 2306.16410)", "PNP-VQA (arXiv 2210.08773)")
    export_target: ClassVar[str] = "causal LM with tools"
    raw_input: ClassVar[bool] = False
    rate_scale: ClassVar[float] = 1.0
    stage_one_needs_text: ClassVar[bool] = False

    @property
    def group(self) -> str:
        """Return the survey's sub-group."""
        return "natural-language-assisted" if self.chain else "control: text only"

    def stages(self, recipe: Sequence[Stage]) -> tuple[Stage, ...]:
        """Return the recipe with this method's language model setting."""
        whole = sum(stage.share for stage in recipe)
        return tuple(
            stage.model_copy(update={"llm": self.llm, "share": stage.share / whole})
            for stage in recipe
        )

    def stage_one_terms(self, **_: Any) -> dict[str, float]:
        """Return no terms: there is no connector."""
        return {}


def tool_names(chains: Sequence[str]) -> list[str]:
    """Return the methods of these chains: with frozen and tuned language model."""
    return [name for chain in chains for name in (PREFIX + chain, f"{PREFIX}{chain}:full")]


def parse_tool_method(name: str) -> ToolMethod | None:
    """Parse ``tool:CHAIN``, optionally with ``:full`` or ``:lora``, or ``text_only``; None for any other name.

    Raises:
        UsageError: the chain has no name.
    """
    modes: dict[str, LLMMode] = {"full": "full", "lora": "lora"}
    plain, _, mode = name.rpartition(":")
    if mode not in modes:
        plain, mode = name, ""
    if plain == TEXT_ONLY:
        return ToolMethod("", modes.get(mode, "frozen"))
    if not plain.startswith(PREFIX):
        return None
    chain = plain.removeprefix(PREFIX)
    if not chain:
        raise UsageError(f"method {name!r} has no tool chain: write {PREFIX}CHAIN")
    return ToolMethod(chain, modes.get(mode, "frozen"))


def entries_of(
    tools: ToolMethod, parts: Parts, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> tuple[ToolChain | None, dict[str, Entry]]:
    """Return how each modality enters through the tools, and the chain (None for the control)."""
    from modalign.models.tool_text import (  # methods are listed without
        no_media_entries,
        tool_entries,
    )

    if not tools.chain:
        return None, no_media_entries(tokenizer, parts.modalities)
    return tool_entries(parts.chain(tools.chain), tokenizer, parts.modalities, cache / "tools")
