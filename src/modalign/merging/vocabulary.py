"""Rows of embedding and head by token string: which row of a parent stands for each row of the merged model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from modalign.errors import UsageError
from modalign.hashing import tokenizer_hash
from modalign.merging.parents import EMBEDDING, HEAD, Parent

Tokens = Literal["same", "map"]
SHARED = 0.5  # of the merged model's tokens that a parent must know, if rows are mapped


@dataclass(frozen=True)
class Rows:
    """Where a parent's rows of the vocabulary are.

    Attributes:
        index: (V,) row of the parent for each row of the merged model; -1 where it has none. None: the same rows.
        note: what was done, in words; empty for the same rows.
    """

    index: Tensor | None = None
    note: str = ""

    @property
    def moved(self) -> bool:
        """Whether a row has another number there, so that the parent reads other ids."""
        if self.index is None:
            return False
        known = self.index >= 0
        return not torch.equal(self.index[known], torch.arange(len(self.index))[known])

    def taken(self, value: Tensor, own: Tensor) -> Tensor:
        """Return a parent's tensor with the merged model's rows; those that it lacks are the merged model's own.

        Args:
            value: (V_parent, ...) as the parent stores it.
            own: (V, ...) of the model that gives the vocabulary.
        """
        if self.index is None:
            return value
        found = value[self.index.clamp(min=0)]
        lacking = self.index < 0
        found[lacking] = own[lacking].to(found.dtype)
        return found


def is_vocabulary(identity: str) -> bool:
    """Whether a tensor has a row for every token."""
    return identity in (EMBEDDING, HEAD, f"{HEAD}.bias")


def rows_of(parent: Parent, like: Parent, tokens: Tokens) -> Rows:
    """Compare a parent's tokenizer with that of the model that gives the vocabulary, and find its rows.

    Args:
        parent: whose rows are looked for.
        like: the model whose tokenizer the merged model gets.
        tokens: ``same``: the tokens must have the same ids, up to added ones; ``map``: by token string.

    Raises:
        UsageError: they differ by more; the message says how, and what to do.
    """
    wanted, own = (int(each.place(EMBEDDING).shape[0]) for each in (like, parent))
    ours, theirs = like.tokenizer, parent.tokenizer
    if ours is None or theirs is None:
        lacking = like if ours is None else parent
        if wanted == own:
            return Rows(note=f"{lacking.name} has no tokenizer, so tokens were not compared")
        raise UsageError(
            f"{lacking.name} has no tokenizer, and the vocabularies have {wanted:,} and {own:,} rows: add the "
            "tokenizer's files to its folder"
        )
    if wanted == own and tokenizer_hash(ours) == tokenizer_hash(theirs):
        return Rows()
    found = _matched(ours, theirs, wanted, own)
    if tokens == "same":
        _check_same(found, parent, like)
    shared = len(found.shared) / max(len(found.ours), 1)
    if shared < SHARED:
        raise UsageError(
            f"{parent.name} knows {len(found.shared):,} of the {len(found.ours):,} tokens of {like.name}: too "
            "few to map rows by token string; merge models of one tokenizer"
        )
    if found.index.tolist() == list(range(wanted)) and wanted == own:
        return Rows(
            note=f"the tokenizers of {parent.name} and {like.name} have the same tokens, but do not "
            "cut texts alike"
        )
    lacks = int((found.index < 0).sum())
    dropped = len(found.theirs.keys() - found.ours.keys())
    return Rows(
        found.index,
        f"rows of {parent.name} by token string: {len(found.shared):,} shared, {lacks:,} of {like.name} alone "
        f"(taken from it), {dropped:,} of {parent.name} alone (left out)",
    )


@dataclass(frozen=True)
class _Matched:
    ours: dict[str, int]
    theirs: dict[str, int]
    shared: set[str]
    index: Tensor
    added: set[str]  # tokens that were added to either vocabulary


def _matched(like: Any, parent: Any, wanted: int, own: int) -> _Matched:
    ours = {text: row for text, row in like.get_vocab().items() if row < wanted}
    theirs = {text: row for text, row in parent.get_vocab().items() if row < own}
    index = torch.full((wanted,), -1, dtype=torch.long)
    rows, parent_rows = set(ours.values()), set(theirs.values())
    for row in range(min(wanted, own)):  # padding of both, which no token reaches
        if row not in rows and row not in parent_rows:
            index[row] = row
    shared = ours.keys() & theirs.keys()
    for text in shared:
        index[ours[text]] = theirs[text]
    return _Matched(
        ours, theirs, shared, index, {*like.get_added_vocab(), *parent.get_added_vocab()}
    )


def _check_same(found: _Matched, parent: Parent, like: Parent) -> None:
    """Refuse tokens with other ids, and vocabularies that differ by more than added tokens."""
    moved = sorted(text for text in found.shared if found.ours[text] != found.theirs[text])
    alone = sorted((found.ours.keys() ^ found.theirs.keys()) - found.added)
    if not moved and not alone:
        return
    if moved:
        text = moved[0]
        said = (
            f"{len(moved):,} tokens have other ids, {text!r} {found.ours[text]} and {found.theirs[text]}, "
            "for one"
        )
    else:
        said = f"{len(alone):,} tokens are only in one of them, {alone[0]!r} for one"
    raise UsageError(
        f"the tokenizers of {like.name} and {parent.name} differ: {said}. --tokens map takes rows by token string"
    )
