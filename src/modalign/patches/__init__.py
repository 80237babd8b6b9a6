"""Patches: named, reversible, composable changes of a base model, bound to the tensors they expect."""

from modalign.patches.apply import applied, apply_patch, patches_of, remove_patch, view
from modalign.patches.combine import add, merge, scale, soup
from modalign.patches.fit import check_tokenizer
from modalign.patches.header import PatchHeader
from modalign.patches.inspection import with_patches
from modalign.patches.patch import Patch
from modalign.patches.separate import drop, keep
from modalign.patches.storage import load_patch, save_patch
from modalign.patches.structure_patches import structure_patch

__all__ = [
    "Patch",
    "PatchHeader",
    "add",
    "applied",
    "apply_patch",
    "check_tokenizer",
    "drop",
    "keep",
    "load_patch",
    "merge",
    "patches_of",
    "remove_patch",
    "save_patch",
    "scale",
    "soup",
    "structure_patch",
    "view",
    "with_patches",
]
