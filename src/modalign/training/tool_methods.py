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
    """What a tool method says about itself, under the names that a connector's class has.

    Attributes:
        chain: name of the tool chain; empty: none, the control that reads the text alone.
        llm: what of the language model is tuned on the chain's text.
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
        """The survey's sub-group."""
        return "natural-language-assisted" if self.chain else "control: text only"

    def stages(self, recipe: Sequence[Stage]) -> tuple[Stage, ...]:
        """Return the recipe, with the language model as this method has it."""
        whole = sum(stage.share for stage in recipe)
        return tuple(
            stage.model_copy(update={"llm": self.llm, "share": stage.share / whole})
            for stage in recipe
        )

    def stage_one_terms(self, **_: Any) -> dict[str, float]:
        """Return no terms: there is no connector."""
        return {}


def tool_names(chains: Sequence[str]) -> list[str]:
    """Methods of these chains: the language model frozen, and tuned on their text."""
    return [name for chain in chains for name in (PREFIX + chain, f"{PREFIX}{chain}:full")]


def parse_tool_method(name: str) -> ToolMethod | None:
    """``tool:CHAIN``, with ``:full`` or ``:lora`` after it, or ``text_only``; None for any other name.

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
        raise UsageError(f"method {name!r} names no tool chain: write {PREFIX}CHAIN")
    return ToolMethod(chain, modes.get(mode, "frozen"))


def entries_of(
    tools: ToolMethod, parts: Parts, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> tuple[ToolChain | None, dict[str, Entry]]:
    """How each modality enters through the tools, and the chain; None for the control without one."""
    from modalign.models.tool_text import (  # methods are listed without
        no_media_entries,
        tool_entries,
    )

    if not tools.chain:
        return None, no_media_entries(tokenizer, parts.modalities)
    return tool_entries(parts.chain(tools.chain), tokenizer, parts.modalities, cache / "tools")
