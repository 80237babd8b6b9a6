"""Load a model folder with plain transformers and say what is there, as JSON: run as a script in a clean process.

The folder comes as one line of JSON on standard input, once everything is imported. Imports only the standard
library, torch and transformers.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def loaded(folder: str, media: bool, trust: bool, length: int) -> dict[str, Any]:
    """Return names of tensors, what loading misses, and whether all values and the logits of a text are finite."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    kind: Any = AutoModelForMultimodalLM if media else AutoModelForCausalLM
    model, info = kind.from_pretrained(
        folder,
        dtype="auto",
        trust_remote_code=trust,
        use_safetensors=True,
        output_loading_info=True,
    )
    model.eval()
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, length + 1)[None] * 7919 % max(rows - 8, 1)  # low ids, so no placeholder
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    state = model.state_dict()
    return {
        "tensors": sorted(state),
        **{
            f"{what}_keys": sorted(map(str, info[f"{what}_keys"]))
            for what in ("missing", "unexpected", "mismatched")
        },
        "not_finite": [
            n
            for n, v in state.items()
            if v.is_floating_point() and not bool(torch.isfinite(v).all())
        ],
        "finite_logits": bool(torch.isfinite(logits).all()),
    }


if __name__ == "__main__":

    class _Blocked:
        """An import finder that refuses modalign."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            """Refuse, or leave the search to the next finder."""
            if name.partition(".")[0] == "modalign":
                raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

    sys.meta_path.insert(0, _Blocked())
    from transformers import AutoModelForCausalLM  # noqa: F401  (while the model is being written)

    given = sys.stdin.readline()
    if given:
        print(json.dumps(loaded(**json.loads(given))))
