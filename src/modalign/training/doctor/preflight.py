"""The quick part of the examination, before every training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from modalign.errors import DataError, ModalignError, UsageError
from modalign.files import check_room
from modalign.memory import return_freed_memory
from modalign.models.compose import LanguageModel
from modalign.training.doctor.checks_model import REFUSALS, no_media, refusal, try_out
from modalign.training.doctor.checks_saving import size_of
from modalign.training.doctor.workshop import Workshop
from modalign.training.learners import Composed
from modalign.training.memory.estimate import estimate_memory
from modalign.training.methods import Method
from modalign.training.settings import TrainSettings
from modalign.training.sources import Parts
from modalign.training.splits import Splits


@dataclass(frozen=True)
class Room:
    """What will be written of several methods.

    Attributes:
        folder: that it goes to.
        trainings: of every method, each of which keeps what it trained; one model is kept whole.
        there: bytes of them that are there already.
    """

    folder: Path
    trainings: int
    there: int = 0

    def check(self, needed: int) -> None:
        """See that the disk takes it.

        Raises:
            UsageError: it does not.
        """
        check_room(self.folder, needed - self.there, "what is trained, and the chosen model, take")


def preflight(
    parts: Parts,
    splits: Splits,
    settings: TrainSettings,
    methods: Sequence[Method],
    cache: Path,
    *,
    llm: LanguageModel | None = None,
    processes: int = 1,
    optional: Collection[str] = (),
    room: Room | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Check for anything that would end the training of any of these methods.

    Every method's connector is built and run on real samples; one prefix and one in-layer method run
    through the language model; memory is estimated for the method with the most tokens.

    Args:
        parts: language model and encoder.
        splits: tokenised data.
        settings: how to train.
        methods: methods to train.
        cache: directory of encoder features.
        llm: the language model, if already loaded; its weights stay, but not which of them train, and it
            may gain a row for the placeholder.
        processes: number of simultaneous trainings.
        optional: names of methods that may prove impossible (those selected by ``all``).
        room: that their results need on the disk.

    Returns:
        Warnings, and the optional methods that cannot work with these parts, with the reason.

    Raises:
        DataError: a sample is too long for a method, or placeholders and features differ.
        ModalignError: a connector cannot work with these parts.
    """
    return_freed_memory()
    loaded = llm or parts.load_llm()
    shop = Workshop(parts, loaded, settings, splits.train, splits.val, cache, splits.text)
    samples = [*splits.train, *splits.val, *splits.evaluation]
    tokens: dict[str, int] = {}
    whole, parts_of_all = 0, 0  # bytes
    kinds: set[str] = set()
    errors: list[ModalignError] = []
    refused: dict[str, str] = {}
    for method in methods:
        try:
            with shop.subject(method, lora=False) as subject:
                try_out(subject, samples, whole=method.facts.enters not in kinds)
                tokens[method.name] = subject.collator.tokens_per_medium
                size = size_of(subject.model)
                whole = max(whole, size)
                parts_of_all += (
                    size if settings.llm == "full" else size_of(subject.model.connectors)
                )
            kinds.add(method.facts.enters)
        except REFUSALS as error:
            if method.name in optional and not isinstance(error, DataError):
                refused[method.name] = str(error)
            else:
                errors.append(refusal(method, error))
    if errors:
        known = (DataError, UsageError, ModalignError)
        kind = next(kind for kind in known if isinstance(errors[0], kind))
        raise kind("\n".join(str(error) for error in errors))
    if room is not None:
        room.check(whole + room.trainings * parts_of_all)
    training = [m for m in methods if m.trains(settings.llm) and m.name in tokens]
    if not training:
        return no_media(splits.train), refused
    heaviest = max(training, key=lambda method: tokens[method.name])
    with shop.subject(heaviest) as subject:
        warning = estimate_memory(subject).warning(processes)
    found = [f"{heaviest.name}: {warning}"] if warning else []
    return [*no_media(splits.train), *found], refused


def preflight_session(session: Composed, *, processes: int = 1) -> list[str]:
    """Check one composed session, without changing its random state and weights."""
    try_out(session, [*session.train_samples, *session.val_samples])
    found = no_media(session.train_samples) if len(session.model.connectors) else []
    if session.method.trains(session.settings.llm) and (
        warning := estimate_memory(session).warning(processes)
    ):
        found.append(warning)
    return found
