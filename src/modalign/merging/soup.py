"""A merge as a soup patch: the parents' differences with their coefficients, added up when it is applied.

Where the method is a weighted sum (``linear``, ``task_arithmetic``) every tensor keeps one term per parent;
elsewhere it keeps the merged difference. Either way the patched tensor is compared with the merged one, number by
number, before the patch is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from modalign.errors import UsageError
from modalign.hashing import tensor_hash, tokenizer_hash
from modalign.merging.alignment import Alignment
from modalign.merging.parents import EMBEDDING, Parent, identities
from modalign.merging.writing import Hashes, Recipe, content
from modalign.patches.changes import Change, changed
from modalign.patches.difference import change_between
from modalign.patches.header import BaseTensor, PatchHeader, with_history
from modalign.patches.header import Parent as PatchParent
from modalign.patches.patch import Patch
from modalign.patches.storage import save_patch
from modalign.patches.weighted import WeightedChange
from modalign.progress import Progress

SUMS = ("linear", "task_arithmetic")


def patched_parent(alignment: Alignment) -> Parent:
    """Return the model that a soup is for: the base, or the first parent.

    Raises:
        UsageError: the merged model has tensors or rows that it lacks.
    """
    target = alignment.base or next(iter(alignment.parents.values()))
    lacking = [each for each in alignment.like.names if each not in target.names]
    if lacking or alignment.rows[target.name].index is not None:
        what = f"the tensor {lacking[0]}" if lacking else "rows of the vocabulary"
        raise UsageError(
            f"a patch changes {target.name}, which lacks {what} of {alignment.like.name}: name "
            f"{alignment.like.name} first, or write a folder (--as folder)"
        )
    return target


def write_soup(
    alignment: Alignment,
    recipe: Recipe,
    path: Path,
    *,
    hashes: Hashes,
    progress: Progress = lambda name, done, total: None,
) -> int:
    """Write the merge as a patch of kind ``soup``; it is in memory until then.

    Returns:
        The number of tensors that it changes.

    Raises:
        UsageError: the merged model is the model that the patch would be for.
        DataError: values that are not finite.
    """
    target = patched_parent(alignment)
    transposed = _transposed(target)
    base: dict[str, BaseTensor] = {}
    changes: dict[str, Change] = {}
    for number, identity in enumerate(target.names):
        progress("tensors", number, len(target.names))
        place = target.place(identity)
        if not place.patchable:
            continue
        old = target.read(identity)
        blocks = list(content(alignment, recipe, identity, hashes)())
        new = torch.cat(blocks).reshape(old.shape).to(old.dtype)
        if torch.equal(old, new):
            continue
        flipped = identity in transposed
        name = target.stored(identity)
        found = _sum(alignment, recipe, identity, old, flipped)
        if found is None or not torch.equal(changed(old, [found], flipped), new):
            exact, _ = change_between(name, old, new, flipped)
            found = WeightedChange(((1.0, exact),))
        changes[name] = found
        base[name] = BaseTensor(
            sha256=tensor_hash(old),
            shape=tuple(old.shape),
            transposed=flipped,
            tied=target.tied and identity == EMBEDDING,
        )
    if not changes:
        raise UsageError(f"the merged model is {target.name} itself: there is nothing to patch")
    header = _header(alignment, recipe, target, base, hashes, path.stem)
    save_patch(Patch(header, changes), path)
    return len(changes)


def _sum(
    alignment: Alignment, recipe: Recipe, identity: str, old: Tensor, flipped: bool
) -> Change | None:
    """Return the weighted sum of the parents' own differences; None where the merge is something else."""
    if recipe.method.name not in SUMS or identity not in alignment.merged:
        return None
    weights = recipe.coefficients.of(identity)
    whole = sum(weights.values()) if recipe.method.name == "linear" else 1.0
    scale = float(recipe.options.get("scale", 1.0)) / whole
    values = alignment.tensors(identity)
    terms = []
    for name, weight in weights.items():
        value = values[name].to(old.dtype)
        if not torch.equal(value, old):
            change, _ = change_between(identity, old, value, flipped)
            terms.append((scale * weight, change))
    return WeightedChange(tuple(terms)) if terms else None


def _header(
    alignment: Alignment,
    recipe: Recipe,
    target: Parent,
    base: dict[str, BaseTensor],
    hashes: Hashes,
    name: str,
) -> PatchHeader:
    overall = dict(
        zip(recipe.coefficients.parents, dict(recipe.coefficients.rules)["*"], strict=True)
    )
    rules: Mapping[str, object] = {p: list(w) for p, w in recipe.coefficients.rules}
    header = PatchHeader(
        format_version=2,
        name=name,
        kind="soup",
        method=recipe.method.name,
        model=str(target.folder),
        base=base,
        tokenizer=None if target.tokenizer is None else tokenizer_hash(target.tokenizer),
        settings={**recipe.options, "weights": rules},
        seed=recipe.seed,
        parents=tuple(
            PatchParent(name=parent, sha256=hashes.of(parent), weight=overall[parent])
            for parent in alignment.parents
        ),
    )
    return with_history(header, f"merged {', '.join(alignment.parents)} by {recipe.method.name}")


def _transposed(parent: Parent) -> set[str]:
    known = identities(parent.model)
    modules = parent.model.named_modules()
    return {known[f"{name}.weight"] for name, m in modules if isinstance(m, Conv1D)}
