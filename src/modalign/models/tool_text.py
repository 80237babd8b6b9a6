"""Tools in place of a connector: a medium enters the sequence as the text that tools make of it."""

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
from modalign.tools.build import build_chain
from modalign.tools.chain import ToolChain
from modalign.tools.spec import ChainSpec

TOOLS = "tools.json"  # of a model folder: the chain whose text the model was given


class ToolText:
    """An entry (see ``collation.Entry``) whose stand-in for a medium is a tool chain's text."""

    def __init__(
        self, chain: ToolChain, tokenizer: PreTrainedTokenizerBase, modality: str, most: int
    ) -> None:
        self.chain, self.tokenizer, self.tokens = chain, tokenizer, most
        self.token_id = int(tokenizer.convert_tokens_to_ids(mark(modality)))

    def stand_ins(self, media: Sequence[Media]) -> list[np.ndarray]:
        """The tokens of each medium's text."""
        texts = [self.chain.text(medium) for medium in media]
        return [np.asarray(_ids(self.tokenizer, text), dtype=np.int64) for text in texts]

    def fetch(self, media: Sequence[Media]) -> dict[str, Any]:
        """Nothing: the text is all that the model reads."""
        return {}


@dataclass
class NoMedia:
    """An entry whose media leave no trace: what the text alone reaches."""

    token_id: int
    tokens: int = 0

    def stand_ins(self, media: Sequence[Media]) -> list[np.ndarray]:
        """No token."""
        return [np.zeros(0, dtype=np.int64) for _ in media]

    def fetch(self, media: Sequence[Media]) -> dict[str, Any]:
        """Nothing."""
        return {}


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return ids_of(tokenizer, as_text(tokenizer, text))


def token_counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], int]:
    """Tokens of a text, as a chain's budget counts them."""
    return lambda text: len(_ids(tokenizer, text))


def no_media_entries(
    tokenizer: PreTrainedTokenizerBase, modalities: Sequence[str]
) -> dict[str, Entry]:
    """Every modality left out."""
    return {m: NoMedia(int(tokenizer.convert_tokens_to_ids(mark(m)))) for m in modalities}


def tool_entries(
    spec: ChainSpec,
    tokenizer: PreTrainedTokenizerBase,
    modalities: Sequence[str],
    cache: Path | None = None,
) -> tuple[ToolChain, dict[str, Entry]]:
    """A chain, and how every modality enters through it."""
    chain = build_chain(spec, token_counter(tokenizer), cache)
    entries: dict[str, Entry] = {
        modality: ToolText(chain, tokenizer, modality, spec.budget) for modality in modalities
    }
    return chain, entries


class ToolReader:
    """What turns records into the inputs of a language model that reads tools' text.

    Attributes:
        tokenizer: of the language model, knowing the placeholders.
        modalities: what the tools take.
        collator: puts the tools' text where media stand.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, spec: ChainSpec, modalities: Sequence[str]
    ) -> None:
        self.tokenizer, self.modalities = tokenizer, list(modalities)
        self.chain, entries = tool_entries(spec, tokenizer, modalities)
        self.collator = Collator(entries, pad_id=int(tokenizer.pad_token_id or 0))


def save_tools(folder: Path, spec: ChainSpec, modalities: Sequence[str]) -> None:
    """Note beside a language model what tools it was given the text of."""
    values = {"modalities": list(modalities), "chain": spec.model_dump(mode="json")}
    write_atomically(folder / TOOLS, json.dumps(values, indent=2) + "\n")


def saved_tools(folder: Path) -> tuple[ChainSpec, list[str]] | None:
    """The chain that a model folder was saved with, and its modalities; None: it has none."""
    file = folder / TOOLS
    if not file.is_file():
        return None
    values = json.loads(file.read_text(encoding="utf-8"))
    return ChainSpec.model_validate(values["chain"]), list(values["modalities"])
