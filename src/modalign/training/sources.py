"""The model's parts and data: the part of a configuration that every verb shares."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from modalign.chat_templates import let_through, turn_end_ids
from modalign.data.features import FeatureStore, Grid, Kept, encoder_key
from modalign.data.modalities import modality_names, modality_of
from modalign.data.readers.columns import parse_columns
from modalign.data.records import Media
from modalign.errors import UsageError, choose
from modalign.models.collation import CachedFeatures, MediaSource, RawSignals
from modalign.models.compose import LanguageModel, load_language_model
from modalign.models.encoders.loading import Encoder, load_encoder
from modalign.progress import Progress, within
from modalign.starter.build import BuiltIn
from modalign.tools.registry import chain_spec
from modalign.tools.spec import ChainSpec
from modalign.training.settings import EncoderMode

log = logging.getLogger(__name__)


class Parts(BaseModel):
    """The language model and the encoders.

    Attributes:
        llm: hub name or folder of a causal language model, or ``starter:llm``.
        encoder: modality -> hub name, folder, ``starter:encoder``, ``package.module:Class``, ``none`` (raw
            patches of an image or a spectrogram, the vectors themselves), or one of modalign's small encoders.
        connector: modality -> its fixed connector, whatever method is trained or compared; other
            modalities use the method's.
        options: modality -> options of its encoder.
        feature_layer: hidden layer of an image tower to read (LLaVA reads -2), or "output": the tower's own
            output, after its last norm if it has one; or "all": that output with its class token, as read by
            BLIP-2's Q-Former.
        image_size, patch_size: for raw patches and imported modules.
        tools: tool chains by name: their description, or empty for a built-in one or a file.
        control_tokens: special tokens that are such where a text holds them, too.
        features: the type that features of frozen encoders are kept in: float32, or float16 for half the space
            (what rounding changed is measured and told).
        allow_pickle: also read weights that are a pickle, with ``weights_only=True``.
    """

    model_config = ConfigDict(extra="forbid")

    llm: BuiltIn
    encoder: dict[str, BuiltIn]
    connector: dict[str, str] = Field(default_factory=dict)
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tools: dict[str, Any] = Field(default_factory=dict)
    feature_layer: int | Literal["output", "all"] = -2
    image_size: int = 224
    patch_size: int = 16
    control_tokens: list[str] = Field(default_factory=list)
    features: Kept = "float32"
    allow_pickle: bool = False

    @model_validator(mode="after")
    def _known_modalities(self) -> Parts:
        for name, given in (("connector", self.connector), ("options", self.options)):
            foreign = sorted(set(given) - set(self.encoder))
            if foreign:
                raise ValueError(f"{name} names {foreign[0]!r}, which has no encoder")
        unknown = sorted(set(self.encoder) - set(modality_names()))
        if unknown:
            raise ValueError(f"no modality {unknown[0]!r}: {choose(unknown[0], modality_names())}")
        return self

    @property
    def modalities(self) -> list[str]:
        """Return the modalities that the model takes besides text."""
        return [modality for modality in modality_names() if modality in self.encoder]

    def load_llm(self) -> LanguageModel:
        """Load the language model and its tokenizer.

        Raises:
            UsageError: it cannot be loaded, or batches cannot be padded nor answers ended.
        """
        found = load_language_model(
            self.llm, modalities=self.modalities, allow_pickle=self.allow_pickle
        )
        let_through(found.tokenizer, self.control_tokens)
        if found.tokenizer.pad_token is None:  # the end token would have taken its place
            ends = found.tokenizer.convert_ids_to_tokens(turn_end_ids(found.tokenizer))
            hint = f"; its chat template ends turns with {ends[0]!r}" if ends else ""
            raise UsageError(
                f"the tokenizer of {self.llm!r} has neither a padding nor an end token: batches cannot be padded, "
                f"and no answer would end. Set its eos_token and save it{hint}"
            )
        return found

    def chain(self, name: str) -> ChainSpec:
        """Return the description of a tool chain: one of these parts, a built-in one, or a file."""
        return chain_spec(name, {key: value for key, value in self.tools.items() if value})

    def load_encoders(
        self, media: Iterable[Media], raw: bool = False, only: Sequence[str] | None = None
    ) -> list[Encoder]:
        """Load the encoder of every modality.

        Args:
            media: of the training data, for encoders that depend on it.
            raw: raw patches instead of the image encoder, for methods that read those.
            only: these modalities.
        """
        wanted = self.modalities if only is None else only
        return [self._load_encoder(modality, media, raw) for modality in wanted]

    def _load_encoder(self, modality: str, media: Iterable[Media], raw: bool) -> Encoder:
        known = modality_of(modality)
        name = None if raw and known.raw_patches else self.encoder[modality]
        options = {option: getattr(self, field) for option, field in known.settings}
        options |= self.options.get(modality, {})
        found = load_encoder(modality, name, media, options, allow_pickle=self.allow_pickle)
        return replace(found, kept=self.features)


class DataFiles(BaseModel):
    """Data files, in any supported format.

    Attributes:
        train, val, eval: records to train on, to choose by, to judge by.
        text: further records without media; read by recipes that mix text in, and by nothing else.
        media_root: the folder that relative media paths start from.
        columns: column that is read -> its name in the files.
        skip_broken: share of broken records that may be dropped.
    """

    model_config = ConfigDict(extra="forbid")

    train: BuiltIn
    val: BuiltIn | None = None
    eval: BuiltIn | None = None
    text: str | None = None
    media_root: str | None = None
    columns: Annotated[dict[str, str], BeforeValidator(parse_columns)] = Field(default_factory=dict)
    skip_broken: str = "0%"


def runs_with_model(encoder: Encoder, mode: EncoderMode, raw: bool = False) -> bool:
    """Whether an encoder trains, so that its features cannot be cached.

    Args:
        encoder: encoder of one modality.
        mode: mode of pretrained encoders.
        raw: the method reads raw patches of images.
    """
    trains = encoder.module.fresh or (
        mode == "full" and not (raw and modality_of(encoder.modality).raw_patches)
    )
    return trains and any(True for _ in encoder.module.parameters())


def sources_of(
    encoders: Sequence[Encoder],
    mode: EncoderMode,
    cache: Path,
    device: torch.device,
    media: Sequence[Media] | None,
    raw: bool = False,
) -> dict[str, MediaSource]:
    """Return each modality's source of media: the filled feature cache, or the encoder in the model.

    Args:
        media: media to encode now; None: missing ones are encoded on demand.
    """
    sources: dict[str, MediaSource] = {}
    for encoder in encoders:
        if runs_with_model(encoder, mode, raw):
            sources[encoder.modality] = RawSignals(encoder)
        elif media is None:
            sources[encoder.modality] = OnDemand(encoder, cache, device)
        else:
            store = feature_store(encoder, cache)
            fill_store(store, encoder, media, device)
            sources[encoder.modality] = CachedFeatures(store, encoder.modality)
    return sources


class OnDemand(CachedFeatures):
    """Features from the store; missing ones are encoded on demand."""

    def __init__(self, encoder: Encoder, cache: Path, device: torch.device) -> None:
        super().__init__(feature_store(encoder, cache), encoder.modality)
        self.encoder, self.device = encoder, device

    def counts(self, media: Sequence[Media]) -> list[int]:
        """Return the number of features of each medium."""
        grid = self.encoder.module.grid
        if grid is not None:  # equally many for every medium, known without encoding
            return [self.encoder.module.num_features] * len(media)
        fill_store(self.store, self.encoder, media, self.device)
        return super().counts(media)

    def fetch(self, media: Sequence[Media]) -> dict[str, Any]:
        """Return the features of the media, in order."""
        fill_store(self.store, self.encoder, media, self.device)
        return super().fetch(media)


def feature_store(encoder: Encoder, cache: Path) -> FeatureStore:
    """Open the store of this encoder's features."""
    key = encoder_key(encoder.module, encoder.spec, encoder.processor)
    return FeatureStore(cache / "features", key, encoder.kept)


def fill_store(
    store: FeatureStore,
    encoder: Encoder,
    media: Sequence[Media],
    device: torch.device,
    progress: Progress | None = None,
) -> int:
    """Encode what the store lacks, and tell what keeping it rounded; return how many media were encoded."""
    module = encoder.module.to(device).eval()

    @torch.inference_mode()
    def encode(media: Sequence[Media]) -> list[tuple[np.ndarray, Grid | None]]:
        signals = encoder.prepare(media)
        mask = None if signals.mask is None else signals.mask.to(device)
        features, present = module(signals.values.to(device), mask)
        rows = zip(features.float().cpu().numpy(), present.cpu().numpy(), strict=True)
        return [(array[kept], module.grid) for array, kept in rows]

    tell = within(f"encoding {encoder.modality}", progress)
    own = [medium for medium in media if medium.modality == encoder.modality]
    encoded = store.ensure(own, encode, progress=tell)
    if encoded and store.rounding:
        log.warning(
            "%s features are kept in %s: rounding changed %.1e of their norm",
            encoder.modality,
            store.kept.name,
            store.rounding,
        )
    return encoded
