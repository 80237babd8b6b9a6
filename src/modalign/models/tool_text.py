"""Tools instead of a connector: a medium enters the sequence as the text of tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from modalign.chat_templates import as_text, ids_of
from modalign.data.records import Media, mark
from modalign.files import write_atomically
from modalign.models.collation import Collator, Entry
from modalign.strict_json import read_object
from modalign.tools.build import build_chain
from modalign.tools.chain import ToolChain
from modalign.tools.spec import CallableSpec, ChainSpec, LayoutSpec, McpSpec
from modalign.trust import refuse_untrusted

TOOLS = "tools.json"  # in a model folder: the chain whose text the model reads


class ToolText:
    """An entry (see ``collation.Entry``) that replaces a medium by a tool chain's text."""

    def __init__(
        self, chain: ToolChain, tokenizer: PreTrainedTokenizerBase, modality: str, most: int
    ) -> None:
        self.chain, self.tokenizer, self.tokens = chain, tokenizer, most
        self.token_id = int(tokenizer.convert_tokens_to_ids(mark(modality)))

    def stand_ins(self, media: Sequence[Media]) -> list[np.ndarray]:
        """Return the tokens of each medium's text."""
        texts = [self.chain.text(medium) for medium in media]
        return [np.asarray(_ids(self.tokenizer, text), dtype=np.int64) for text in texts]

    def fetch(self, media: Sequence[Media]) -> dict[str, Any]:
        """Return nothing: the model reads only the text."""
        return {}


@dataclass
class NoMedia:
    """An entry that drops media, for the score of text alone."""

    token_id: int
    tokens: int = 0

    def stand_ins(self, media: Sequence[Media]) -> list[np.ndarray]:
        """Return no tokens."""
        return [np.zeros(0, dtype=np.int64) for _ in media]

    def fetch(self, media: Sequence[Media]) -> dict[str, Any]:
        """Return nothing."""
        return {}


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return ids_of(tokenizer, as_text(tokenizer, text))


def token_counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], int]:
    """Return the function that counts tokens for a chain's budget."""
    return lambda text: len(_ids(tokenizer, text))


def no_media_entries(
    tokenizer: PreTrainedTokenizerBase, modalities: Sequence[str]
) -> dict[str, Entry]:
    """Return entries that drop every modality."""
    return {m: NoMedia(int(tokenizer.convert_tokens_to_ids(mark(m)))) for m in modalities}


def tool_entries(
    spec: ChainSpec,
    tokenizer: PreTrainedTokenizerBase,
    modalities: Sequence[str],
    cache: Path | None = None,
) -> tuple[ToolChain, dict[str, Entry]]:
    """Build a chain, and the entry of every modality through it."""
    chain = build_chain(spec, token_counter(tokenizer), cache)
    entries: dict[str, Entry] = {
        modality: ToolText(chain, tokenizer, modality, spec.budget) for modality in modalities
    }
    return chain, entries


class ToolReader:
    """Turns records into the inputs of a language model that reads tools' text.

    Attributes:
        tokenizer: the language model's, with the placeholders.
        spec: the tools.
        modalities: modalities that the tools accept.
        collator: inserts the tools' text where media are.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, spec: ChainSpec, modalities: Sequence[str]
    ) -> None:
        self.tokenizer, self.spec, self.modalities = tokenizer, spec, list(modalities)
        self.chain, entries = tool_entries(spec, tokenizer, modalities)
        self.collator = Collator(entries, pad_id=int(tokenizer.pad_token_id or 0))


def save_tools(folder: Path, spec: ChainSpec, modalities: Sequence[str]) -> None:
    """Record which tools' text a language model reads."""
    values = {"modalities": list(modalities), "chain": spec.model_dump(mode="json")}
    write_atomically(folder / TOOLS, json.dumps(values, indent=2) + "\n")


def saved_tools(folder: Path) -> tuple[ChainSpec, list[str]] | None:
    """Return the chain saved in a model folder, and its modalities; None if there is none.

    Raises:
        UsageError: it names a program, and the verb was not told to trust it.
    """
    file = folder / TOOLS
    if not file.is_file():
        return None
    values = read_object(file)
    spec = ChainSpec.model_validate(values["chain"])
    for tool in spec.tools:
        while isinstance(tool, LayoutSpec):
            tool = tool.of
        if isinstance(tool, CallableSpec | McpSpec):
            runs = tool.target if isinstance(tool, CallableSpec) else " ".join(tool.command)
            refuse_untrusted(f"{file} names a program to run, {runs!r}")
    return spec, list(values["modalities"])
