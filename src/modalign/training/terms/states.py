"""Terms about hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional

from modalign.errors import UsageError
from modalign.training.objectives import objective_term

COUNTS = {
    "answers": "num_supervised",
    "media": "num_media_positions",
    "tokens": "num_positions",
}


@objective_term("hidden", needs={"hidden:{layer}:{at}"}, reads={"hidden:{reference_layer}:{at}"})
def hidden(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    layer: int,
    reference_layer: int | None = None,
    reference: str = "teacher",
    at: Literal["answers", "media", "tokens"] = "answers",
    distance: Literal["cosine", "mse"] = "cosine",
) -> Tensor:
    """Distance of hidden states from the reference's, mean over positions (FitNets, arXiv 1412.6550).

    ``cosine`` is 1 - cos, ``mse`` the mean over the D values of the squared difference. Layer 0 are the
    embeddings, n what the n-th decoder layer gives, -1 what the last one gives, before the final norm.
    The reference's layer is the same unless it is given.
    """
    own = outputs.hidden(layer, at).float()
    assert reference_layer is not None
    theirs = references[reference].hidden(reference_layer, at).float()
    if own.shape != theirs.shape:
        raise UsageError(
            f"the term hidden compares states of one width; the model's are {own.shape[-1]} wide, those "
            f"of the reference {reference!r} {theirs.shape[-1]}"
        )
    if distance == "mse":
        values = (own - theirs).square().mean(-1)
    else:
        values = 1 - functional.cosine_similarity(own, theirs, dim=-1)
    return values.sum() / max(getattr(batch, COUNTS[at]), 1)
