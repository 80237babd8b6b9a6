"""Tool chains as methods: the modality becomes text, and no connector is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from modalign.errors import UsageError
from modalign.training.settings import LLMMode, Stage

PREFIX = "tool:"


@dataclass(frozen=True)
class ToolMethod:
    """What a tool method says about itself, under the names that a connector's class has.

    Attributes:
        chain: name of the tool chain.
        llm: what of the language model is tuned on the chain's text.
    """

    chain: str
    llm: LLMMode

    name: ClassVar[str] = "tools"
    family: ClassVar[str] = "tool"
    group: ClassVar[str] = "natural-language-assisted"
    enters: ClassVar[str] = "text"
    token_formula: ClassVar[str] = "lines"
    parameter_text: ClassVar[str] = "the tools'"
    papers: ClassVar[tuple[str, ...]] = ("LENS (arXiv 2306.16410)", "PNP-VQA (arXiv 2210.08773)")
    export_target: ClassVar[str] = "causal LM with tools"
    raw_input: ClassVar[bool] = False
    rate_scale: ClassVar[float] = 1.0
    stage_one_needs_text: ClassVar[bool] = False

    def stages(self, recipe: Sequence[Stage]) -> tuple[Stage, ...]:
        """The recipe, with the language model as this method has it."""
        whole = sum(stage.share for stage in recipe)
        return tuple(
            stage.model_copy(update={"llm": self.llm, "share": stage.share / whole})
            for stage in recipe
        )

    def stage_one_terms(self, **_: Any) -> dict[str, float]:
        """None: there is no connector."""
        return {}


def tool_names(chains: Sequence[str]) -> list[str]:
    """Methods of these chains: the language model frozen, and tuned on their text."""
    return [name for chain in chains for name in (PREFIX + chain, f"{PREFIX}{chain}:full")]


def parse_tool_method(name: str) -> ToolMethod | None:
    """``tool:CHAIN``, ``tool:CHAIN:full`` or ``tool:CHAIN:lora``; None for any other name.

    Raises:
        UsageError: the chain has no name.
    """
    if not name.startswith(PREFIX):
        return None
    chain, _, mode = name.removeprefix(PREFIX).rpartition(":")
    modes: dict[str, LLMMode] = {"full": "full", "lora": "lora"}
    if mode not in modes:
        chain, mode = name.removeprefix(PREFIX), ""
    if not chain:
        raise UsageError(f"method {name!r} names no tool chain: write {PREFIX}CHAIN")
    return ToolMethod(chain, modes.get(mode, "frozen"))
