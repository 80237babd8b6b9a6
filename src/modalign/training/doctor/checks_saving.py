"""What can be wrong with saving a model and asking it: found before step 0, not after the last one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from modalign.data.supervision import Sample
from modalign.errors import ModalignError, first_line
from modalign.files import check_room
from modalign.models.asking import conversation_of, tokenizer_of
from modalign.models.export.folder import save_parts
from modalign.models.export.verify import check_trained_ids
from modalign.models.probe import Conversation
from modalign.models.processing import ModalignProcessor
from modalign.models.saved import save_language_parts
from modalign.training.learners import Composed

PROBES = 4  # conversations that a saved model is compared on


def probes_of(subject: Composed, samples: Sequence[Sample] = ()) -> list[Conversation]:
    """Conversations that a saved model is compared on: with media where there are any, validation's first."""
    known = [*samples, *subject.train_samples]
    chosen = [sample for sample in known if sample.media] or known
    asked = [conversation_of(sample.record, subject.processor) for sample in chosen[:PROBES]]
    # Where answers stand alone, something is asked.
    plain: Conversation = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    return [conversation or plain for conversation in asked]


def rehearse_saving(subject: Composed) -> None:
    """Write and read back all of a model's folder but its weights, and ask as it will be asked.

    Raises:
        ModalignError: it would fail after training; the message says why.
    """
    try:
        with tempfile.TemporaryDirectory() as name:
            if isinstance(subject.processor, ModalignProcessor):
                save_parts(subject.model, subject.processor, Path(name))
            else:
                save_language_parts(
                    subject.model.language_model, tokenizer_of(subject.processor), Path(name)
                )
        if not subject.method.tools:
            for conversation in probes_of(subject)[:1]:
                check_trained_ids(subject.processor, conversation)
    except ModalignError:
        raise
    except (
        Exception
    ) as error:  # templates, tokenizers and configurations of others may raise anything
        raise ModalignError(
            f"{subject.method.name}: the model could not be saved and asked after training: {first_line(error)}"
        ) from error


def check_room_for_model(model: nn.Module, folder: Path) -> None:
    """See that the disk takes the trained model.

    Raises:
        UsageError: it does not.
    """
    check_room(folder, size_of(model), "the trained model takes")


def size_of(model: nn.Module) -> int:
    """Return the bytes of a model's parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
