"""Drop rows whose text does not fit their image: cosine of a dual encoder's embeddings (CLIP, SigLIP)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from modalign.data.curation.inputs import Row, hash_path
from modalign.data.curation.media import Need
from modalign.data.curation.operators.base import Judge, Operator, Workplace
from modalign.data.curation.store import Drop
from modalign.data.images import open_image
from modalign.data.records import Media, Record
from modalign.errors import UsageError


class ImageTextSimilarity(Operator):
    """Keep rows whose image and text are similar enough; rows without an image or a text are kept.

    Cosines of several images are averaged. Texts are truncated to the encoder's length.

    Attributes:
        encoder: folder (or hub name) of a model with image and text features, and its processor.
        min_similarity: the minimum cosine; or
        keep_share: the share of the scored rows to keep, the most similar ones.
        of: the whole `text` (user and assistant), the `question` or the `answer`.
        batch_size: images or texts encoded at a time.
        device: auto, cpu, cuda, ...
    """

    name: ClassVar[str] = "image_text_similarity"
    paths: ClassVar[tuple[str, ...]] = ("encoder",)
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    encoder: str
    min_similarity: float | None = Field(default=None, ge=-1, le=1)
    keep_share: float | None = Field(default=None, gt=0, le=1)
    of: Literal["text", "question", "answer"] = "text"
    batch_size: int = Field(default=32, ge=1)
    device: str = "auto"

    @model_validator(mode="after")
    def _one_limit(self) -> ImageTextSimilarity:
        if (self.min_similarity is None) == (self.keep_share is None):
            raise ValueError("give either min_similarity or keep_share")
        return self

    @property
    def needs(self) -> Need:
        """Images are opened."""
        return "picture"

    @property
    def waits(self) -> bool:
        """A share is known only after all rows."""
        return self.keep_share is not None

    def references(self) -> Mapping[str, str]:
        """The encoder, if it is a folder."""
        folder = Path(self.encoder)
        return {self.encoder: hash_path(folder)} if folder.is_dir() else {}

    def start(self, place: Workplace) -> Judge:
        """Load the encoder."""
        return _Judge(self, place)


class _Judge(Judge):
    def __init__(self, settings: ImageTextSimilarity, place: Workplace) -> None:
        self._settings, self._store = settings, place.store
        self._scores = f"{place.prefix}_scores"
        self._encoder = DualEncoder(settings.encoder, settings.device, settings.batch_size)
        place.store.execute(
            f"CREATE TABLE IF NOT EXISTS {self._scores} (position INTEGER PRIMARY KEY, score REAL)"
        )

    def judge(self, rows: Sequence[Row]) -> Iterator[Drop]:
        scored = [
            (row, images) for row in rows if (images := images_of(row.record)) and self._text(row)
        ]
        if not scored:
            return
        texts = [self._text(row) for row, _ in scored]
        scores = self._encoder.cosines([images for _, images in scored], texts)
        for (row, _), score in zip(scored, scores, strict=True):
            self._store.execute(
                f"INSERT OR REPLACE INTO {self._scores} VALUES (?, ?)", (row.position, score)
            )
            limit = self._settings.min_similarity
            if limit is not None and score < limit:
                yield Drop(row.position, f"similarity {score:.3f} under {limit:g}")

    def _text(self, row: Row) -> str:
        text: str = getattr(row, self._settings.of)
        return text

    def finish(self) -> Iterator[Drop]:
        if self._settings.keep_share is None:
            return
        (total,) = self._store.execute(f"SELECT count(*) FROM {self._scores}").fetchone()
        kept = math.ceil(self._settings.keep_share * total - 1e-9)
        rest = self._store.execute(
            f"SELECT position, score FROM {self._scores} ORDER BY score DESC, position"
            " LIMIT -1 OFFSET ?",
            (kept,),
        )
        for position, score in rest:
            yield Drop(position, f"similarity {score:.3f}, not among the {kept} highest of {total}")


class DualEncoder:
    """Normalised embeddings of images and texts.

    Raises:
        UsageError: the folder has no model with image and text features.
    """

    def __init__(self, name: str, device: str, batch_size: int) -> None:
        from transformers import AutoModel, AutoProcessor

        from modalign.devices import device_named

        self._batch_size = batch_size
        self._device = device_named(device)
        try:
            self._processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=False)
            self._model: Any = AutoModel.from_pretrained(
                name, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UsageError(f"image_text_similarity: cannot load {name} ({error})") from None
        for part in ("get_image_features", "get_text_features"):
            if not hasattr(self._model, part):
                kind = type(self._model).__name__
                raise UsageError(
                    f"image_text_similarity: {name} is a {kind}, which has no {part}: give a "
                    "dual encoder such as CLIP or SigLIP"
                )
        self._model.to(self._device).eval()
        self._length = self._model.config.text_config.max_position_embeddings

    def images(self, media: Sequence[Media]) -> np.ndarray:
        """Encode images as (n, d) of length 1."""

        def encode(chunk: Sequence[Media]) -> Any:
            pictures = [open_image(medium) for medium in chunk]
            inputs = self._processor(images=pictures, return_tensors="pt")
            return self._model.get_image_features(**inputs.to(self._device))

        return self._encode(media, encode)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts as (n, d) of length 1, padded to the full length as in SigLIP's training."""

        def encode(chunk: Sequence[str]) -> Any:
            inputs = self._processor(
                text=list(chunk),
                padding="max_length",
                truncation=True,
                max_length=self._length,
                return_tensors="pt",
            )
            return self._model.get_text_features(**inputs.to(self._device))

        return self._encode(texts, encode)

    def cosines(self, pictures: Sequence[Sequence[Media]], texts: Sequence[str]) -> list[float]:
        """Return each text's mean cosine with its images."""
        distinct = list(dict.fromkeys(image for images in pictures for image in images))
        place = {image: index for index, image in enumerate(distinct)}
        seen = self.images(distinct)
        return [
            float(np.mean(seen[[place[image] for image in images]] @ text))
            for images, text in zip(pictures, self.texts(texts), strict=True)
        ]

    def _encode(self, items: Sequence[Any], encode: Any) -> np.ndarray:
        import torch
        from torch.nn.functional import normalize

        found = []
        with torch.inference_mode():
            for begin in range(0, len(items), self._batch_size):
                features = encode(items[begin : begin + self._batch_size])
                pooled = getattr(features, "pooler_output", features)
                found.append(normalize(pooled.float(), dim=-1).cpu().numpy())
        return np.concatenate(found)


def images_of(record: Record) -> list[Media]:
    """Return a record's images."""
    return [medium for medium in record.media() if medium.modality == "image"]
