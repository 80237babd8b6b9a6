"""Load an encoder by modality and name, with everything needed to use and rebuild it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modalign.data.features import Kept
from modalign.data.modalities import check_medium, modality_of
from modalign.data.records import Media
from modalign.data.validation import Check
from modalign.encoders.base import EncoderError, Prepared, SignalEncoder
from modalign.encoders.registry import prepare_signals
from modalign.errors import UsageError
from modalign.models.quiet import quietly


@dataclass
class Encoder:
    """An encoder of one modality.

    Attributes:
        name: the requested name.
        spec: the JSON-able description it can be rebuilt from.
        module: the module that computes features.
        processor: for images: a Hugging Face image processor.
        modality: its input modality.
        kept: the type that its cached features are kept in.
    """

    name: str
    spec: dict[str, Any]
    module: SignalEncoder
    processor: Any = None
    modality: str = "image"
    kept: Kept = "float32"

    def prepare(self, media: Sequence[Media]) -> Prepared:
        """Decode media and convert them to tensors.

        Raises:
            DataError: a medium is unusable; the message names it.
        """
        decoded = [decode_medium(medium, self.spec) for medium in media]
        if self.processor is None:
            return prepare_signals(self.modality, self.spec, decoded)
        pixels = self.processor(images=decoded, return_tensors="pt")["pixel_values"]
        return Prepared(pixels, None, [self.module.num_features] * len(media))


def decode_medium(medium: Media, spec: dict[str, Any]) -> Any:
    """Decode a medium for its encoder's ``prepare``, or for its image processor.

    Raises:
        DataError: it is unusable.
    """
    if medium.decoded is not None:
        return medium.decoded
    return _loader(medium.modality).decode(medium, spec)


def acceptance(specs: Mapping[str, dict[str, Any]]) -> Check:
    """Return a check for ``validate``: every medium is opened, and decoded for its encoder.

    Args:
        specs: encoder descriptions of the modalities with their own limits (lengths, widths).
    """

    def look(medium: Media) -> int | None:
        size = check_medium(medium)
        if medium.modality in specs:
            decode_medium(medium, specs[medium.modality])
        return size

    return look


def _loader(modality: str) -> Any:
    return importlib.import_module(modality_of(modality).loader)


@quietly()
def load_encoder(
    modality: str,
    name: str | None,
    media: Iterable[Media] = (),
    options: dict[str, Any] | None = None,
    *,
    allow_pickle: bool = False,
) -> Encoder:
    """Load the encoder of a modality.

    Args:
        modality: a modality's name.
        name: hub name or folder, ``package.module:Class``, or None/"none" for the form without an
            encoder; some modalities have named small encoders.
        media: training media, which determine columns, widths and so on.
        options: the modality's own.
        allow_pickle: also read weights that are a pickle, with ``weights_only=True``.

    Raises:
        UsageError: it cannot be loaded.
        DataError: the encoder cannot be configured from the media.
    """
    own = [medium for medium in media if medium.modality == modality]
    try:
        found = _loader(modality).load(name, own, dict(options or {}), allow_pickle)
    except EncoderError as error:
        raise UsageError(f"the {modality} encoder {name!r} cannot be loaded: {error}") from error
    spec, module, *rest = found
    return Encoder(name or "none", spec, module, rest[0] if rest else None, modality)
