"""Parents aligned by what their tensors are: which are merged, which come from one parent, which fit nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from modalign.errors import DataError, UsageError, choose
from modalign.merging.parents import Parent
from modalign.merging.vocabulary import Rows, Tokens, is_vocabulary, rows_of

SHOWN = 5  # tensors in a message

# What makes tensors of one shape mean different things; other settings that differ are told, not refused.
_MEANING = {
    "num_attention_heads", "num_key_value_heads", "num_kv_heads", "n_head", "head_dim", "hidden_act",
    "hidden_activation", "activation_function", "rotary_dim",
}  # fmt: skip
_MEANINGLESS = {
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "initializer_range",
    "max_position_embeddings", "model_type", "pad_token_id", "torch_dtype", "transformers_version", "use_cache",
    "vocab_size", "tie_word_embeddings",
}  # fmt: skip


@dataclass(frozen=True)
class Alignment:
    """What is done with every tensor.

    Attributes:
        like: the parent whose configuration, files and vocabulary the merged model gets.
        parents: all, by name.
        base: what deltas are differences from; None where the method needs none.
        merged: identities that all parents have.
        assigned: identity -> the parent that it is copied from.
        rows: parent -> its rows of the vocabulary.
        notes: for the report.
    """

    like: Parent
    parents: Mapping[str, Parent]
    base: Parent | None
    merged: tuple[str, ...]
    assigned: Mapping[str, Parent]
    rows: Mapping[str, Rows]
    notes: list[str] = field(default_factory=list)

    @property
    def everyone(self) -> Mapping[str, Parent]:
        """All parents, and the base."""
        return {**self.parents, **({self.base.name: self.base} if self.base else {})}

    def tensors(self, identity: str) -> dict[str, Tensor]:
        """Return a tensor of every parent and the base, in the rows of the merged model."""
        found = {name: each.read(identity) for name, each in self.everyone.items()}
        if is_vocabulary(identity):
            own = found.get(self.like.name)
            assert own is not None
            found = {name: self.rows[name].taken(value, own) for name, value in found.items()}
        return found


def align(
    parents: Sequence[Parent],
    base: Parent | None,
    *,
    like: str | None = None,
    assign: Sequence[str] = (),
    tokens: Tokens = "same",
) -> Alignment:
    """Align parents by identity.

    Args:
        parents: two or more, of different names.
        base: the model that they came from, if the method needs it.
        like: the parent that gives configuration and vocabulary; None: the one with most tensors.
        assign: ``PARENT`` for all tensors that not every parent has, or ``PATTERN=PARENT``.
        tokens: see :func:`modalign.merging.vocabulary.rows_of`.

    Raises:
        UsageError: models, shapes or tokenizers that do not fit each other, or tensors that fit nothing.
        DataError: whole numbers that differ.
    """
    named = {each.name: each for each in parents}
    if like is not None and like not in named:
        raise UsageError(f"--like {like!r} is none of the parents; {choose(like, named)}")
    chosen = named[like] if like else max(parents, key=lambda each: len(each.names))
    everyone = [*parents, *([base] if base else [])]
    notes = [note for each in everyone if each is not chosen for note in _settings(chosen, each)]
    _check_tied(chosen, everyone)
    rules = [_rule(text, named) for text in assign]
    merged, assigned, loose = [], {}, {}
    for identity in chosen.names:
        taken = next(
            (p for pattern, p in reversed(rules) if pattern and fnmatchcase(identity, pattern)),
            None,
        )
        owners = [each for each in everyone if each.has(identity)]
        if taken is None and len(owners) == len(everyone):
            merged.append(identity)
            continue
        if taken is None:
            taken = next((p for pattern, p in reversed(rules) if not pattern), None)
        if taken is None or not taken.has(identity):
            loose[identity] = [each.name for each in owners]
        else:
            assigned[identity] = taken
    for each in everyone:  # what the merged model has no place for
        for identity in each.names:
            if not chosen.has(identity):
                loose.setdefault(identity, [e.name for e in everyone if e.has(identity)])
    _refuse_loose(loose, chosen, everyone)
    rows = {each.name: rows_of(each, chosen, tokens) for each in everyone if each is not chosen}
    rows[chosen.name] = Rows()
    notes += [each.note for each in rows.values() if each.note]
    found = Alignment(chosen, named, base, tuple(merged), assigned, rows, notes)
    _check_shapes(found)
    return found


def _rule(text: str, named: Mapping[str, Parent]) -> tuple[str, Parent]:
    pattern, _, name = text.rpartition("=")
    if name not in named:
        raise UsageError(
            f"--assign {text!r}: {name!r} is none of the parents; {choose(name, named)}"
        )
    return pattern, named[name]


def _settings(like: Parent, other: Parent) -> list[str]:
    """Refuse settings that give equal shapes another meaning; other differences, in words."""
    ours, theirs = like.text_config, other.text_config
    different = {
        key: (ours[key], theirs[key])
        for key in sorted(ours.keys() & theirs.keys() - _MEANINGLESS)
        if _plain(ours[key]) != _plain(theirs[key])
    }
    for key, (one, two) in different.items():
        if key in _MEANING:
            raise UsageError(
                f"{like.name} and {other.name} compute differently: {key} is {one} and {two}; parents must be of "
                "one architecture"
            )
    shown = ", ".join(f"{key} {one} and {two}" for key, (one, two) in different.items())
    return [f"settings of {like.name} and {other.name} that differ: {shown}"] if shown else []


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in _MEANINGLESS}
    return value


def _check_tied(like: Parent, everyone: Sequence[Parent]) -> None:
    for each in everyone:
        if like.tied and not each.tied:
            raise UsageError(
                f"{like.name} has one tensor for embedding and head, {each.name} has two: choose --like "
                f"{each.name}, or another parent with two"
            )


def _refuse_loose(
    loose: Mapping[str, Sequence[str]], like: Parent, everyone: Sequence[Parent]
) -> None:
    if not loose:
        return
    names = list(loose)
    shown = ", ".join(f"{name} (only {' and '.join(loose[name])})" for name in names[:SHOWN])
    more = f" and {len(names) - SHOWN:,} others" if len(names) > SHOWN else ""
    if any(not like.has(name) for name in names):
        alone = next(name for name in names if not like.has(name))
        raise UsageError(
            f"{like.name} has no place for {alone} of {loose[alone][0]}; {len(names):,} tensors match "
            f"nothing: {shown}{more}. Parents must be of one architecture; --like names "
            "the one that the merged model is like"
        )
    raise UsageError(
        f"{len(names):,} tensors are not in every parent: {shown}{more}. Say whose they are: --assign "
        f"{loose[names[0]][0]} for all of them, or --assign 'PATTERN=PARENT'"
    )


def _check_shapes(found: Alignment) -> None:
    """Refuse tensors of other shapes or kinds."""
    for identity in found.merged:
        place = found.like.place(identity)
        for each in found.everyone.values():
            other = each.place(identity)
            rows = is_vocabulary(identity)
            if place.shape[rows:] != other.shape[rows:]:
                raise UsageError(
                    f"{identity} has the shape {place.shape} in {found.like.name} and {other.shape} in "
                    f"{each.name}: parents must have the same widths"
                )
            if place.patchable != other.patchable:
                raise UsageError(
                    f"{identity} is {place.dtype} in {found.like.name} and {other.dtype} in {each.name}: merge "
                    "models that are not quantised"
                )
        if not place.patchable:
            _check_equal(found, identity)
    for identity, parent in found.assigned.items():
        place, other = found.like.place(identity), parent.place(identity)
        if place.shape != other.shape:
            raise UsageError(
                f"{identity} is assigned to {parent.name}, where it has the shape {other.shape}, not {place.shape}"
            )


def _check_equal(found: Alignment, identity: str) -> None:
    values = {name: each.read(identity) for name, each in found.everyone.items()}
    first, *others = values.items()
    for name, value in others:
        if not torch.equal(first[1], value):
            raise DataError(
                f"{identity} holds whole numbers that differ between {first[0]} and {name}; merge models "
                "that agree"
            )
