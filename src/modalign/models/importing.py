"""A model in another format as a folder that transformers, and every verb here, reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from modalign.errors import ModalignError, UsageError
from modalign.files import check_free, new_folder
from modalign.models.asking import text_ids, tokenizer_of
from modalign.models.export.folder import check_folder
from modalign.models.gguf import Converted, Progress, convert_gguf
from modalign.models.local import gguf_file
from modalign.models.open import open_model

QUESTION = [
    {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}
]


def import_model(
    source: Path | str,
    out: Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Convert a GGUF file to a model folder; it is there only if it loads and computes.

    Args:
        source: a GGUF file, or one of a repository of the hub (``owner/name/file.gguf``).
        out: the new folder.
        dtype: of its weights: float32, bfloat16, float16; None: what the file's own types ask for.
        overwrite: replace a model folder that is there.
        progress: told (what, done, of).

    Raises:
        UsageError: an option is wrong, or the file cannot be read as the model that it is.
        ModalignError: what was written does not load, or does not compute.
    """
    check_free(out, overwrite=overwrite, folders=True)
    check_folder(out)
    file = gguf_file(source)
    if file is None:
        raise UsageError(
            f"{source} is no GGUF file: other models are read as they are, without importing"
        )
    with new_folder(out) as unfinished:
        made = convert_gguf(file, unfinished, dtype, progress)
        model, reader = open_model(unfinished)
        with torch.no_grad():
            ids = torch.tensor([text_ids(tokenizer_of(reader), QUESTION)])
            logits = model(input_ids=ids).logits
        if not logits.isfinite().all():
            raise ModalignError(
                f"{source}: the model in {made.dtype} computes infinities; choose another --dtype"
            )
    return replace(made, folder=out)
