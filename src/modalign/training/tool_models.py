"""The model folder of a tool method: a plain causal language model, and the tools whose text it reads."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from modalign.errors import ModalignError
from modalign.files import new_folder
from modalign.models.export.folder import savable, stored_as
from modalign.models.pretrained import read_pretrained
from modalign.models.quiet import quietly
from modalign.models.tool_text import save_tools
from modalign.training.session import Session

CARD = """\
# A language model that reads the text of tools

The folder contains a plain causal language model and its tokenizer; `tools.json` describes the tools whose
text replaces media in the question. `modalign ask` and `modalign eval` run both together;
plain transformers loads only the language model.

{card}
"""


@quietly()
def save_with_tools(session: Session, folder: Path, card: str = "") -> None:
    """Write a tool method's model, and check that it loads with the same weights.

    Raises:
        ModalignError: the reloaded model differs.
    """
    assert session.method.tools is not None
    model = session.model.language_model
    model.generation_config = savable(model.generation_config)
    with new_folder(folder) as temporary, stored_as(session.saved_dtype, model):
        model.save_pretrained(temporary)
        session.processor.tokenizer.save_pretrained(temporary)
        if session.method.tools.chain:
            spec = session.parts.chain(session.method.tools.chain)
            save_tools(temporary, spec, session.parts.modalities)
        (temporary / "README.md").write_text(CARD.format(card=card), encoding="utf-8")
    again = read_pretrained(AutoModelForCausalLM, folder, use_safetensors=True).state_dict()
    for name, tensor in model.state_dict().items():
        if name not in again or not torch.equal(again[name].to(tensor.dtype), tensor.cpu()):
            raise ModalignError(f"{folder}: {name} differs after loading")
