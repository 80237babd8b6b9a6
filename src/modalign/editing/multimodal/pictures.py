"""Prompts about pictures for key statistics: what the edited weights see when asked about pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modalign.data.images import open_image
from modalign.data.readers import read_records
from modalign.data.records import Media, Record
from modalign.editing.engine.asking import Asking
from modalign.editing.engine.forward import Row
from modalign.editing.multimodal.eyes import Eyes
from modalign.errors import DataError


@dataclass(frozen=True)
class PicturePrompt:
    """A question about one picture, and its answer if known."""

    image: Media
    question: str
    answer: str = ""


@dataclass(frozen=True)
class Pictures:
    """Prompts about pictures.

    Attributes:
        name: for people.
        prompts: in the order in which they are read.
    """

    name: str
    prompts: Sequence[PicturePrompt]

    @property
    def sha256(self) -> str:
        """Hash over all pictures, questions and answers."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            for part in (prompt.image.content_hash(), prompt.question, prompt.answer):
                data = part.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
        return digest.hexdigest()


@dataclass(frozen=True)
class PictureRows:
    """Prompts about pictures as rows for one model."""

    pictures: Pictures
    asking: Asking
    eyes: Eyes

    @property
    def name(self) -> str:
        """The data's name."""
        return self.pictures.name

    @property
    def sha256(self) -> str:
        """Hash of the data and of the form in which it is asked."""
        return f"{self.pictures.sha256} {self.asking.template}"

    def rows(self, start: int) -> Iterator[Row]:
        """Yield each prompt with its answer, from number ``start`` on."""
        for prompt in self.pictures.prompts[start:]:
            asked = self.asking.picture(prompt.question, open_image(prompt.image))
            row = self.eyes.row(asked, len(asked.ids) - 1, keep=False)
            if prompt.answer.strip():
                target = self.asking.target(prompt.answer, prompt.question)
                row = row.followed_by(target)
            yield row


def read_pictures(
    source: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    limit: int = 4000,
    said: Callable[[str], None] = lambda message: None,
) -> Pictures:
    """Read the first question of every record with one picture, in random order.

    Args:
        source: a data file as ``modalign train`` reads it.
        columns: column that is read -> its name in the file.
        seed: of the order.
        limit: the most prompts to keep.
        said: told how many records were left out.

    Raises:
        DataError: no record has a picture.
    """
    found = read_records(source, columns=columns)
    prompts = [prompt for record in found.records if (prompt := _prompt(record)) is not None]
    if not prompts:
        raise DataError(f"{source}: no record asks about one picture in its first message")
    left_out = len(found.records) - len(prompts)
    if left_out:
        said(f"{source}: {left_out} records without a picture, or with several, are left out")
    order = np.random.default_rng(seed).permutation(len(prompts))[:limit]
    return Pictures(Path(source).name, [prompts[place] for place in order])


def _prompt(record: Record) -> PicturePrompt | None:
    """Return the first question and answer of a conversation that starts with one picture."""
    talk = [message for message in record.messages if message.role != "system"]
    if len(talk) < 2 or talk[0].role != "user" or talk[1].role != "assistant":
        return None
    media = [part for part in talk[0].parts if isinstance(part, Media)]
    text = talk[0].text.strip()
    if len(media) != 1 or media[0].modality != "image" or not text:
        return None
    return PicturePrompt(media[0], text, talk[1].text)
