"""Patches: named, reversible, composable changes of a base model, bound to the tensors they expect."""
