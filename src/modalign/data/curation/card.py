"""The data card in JSON and Markdown: the inputs, what each operator did to which rows, and the output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modalign.data.curation.distribution import Bin, Distributions
from modalign.errors import DataError


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CardInput(_Model):
    """An input data set: its path relative to the card's folder, and its contents."""

    path: str
    sha256: str
    rows: int


class CardReference(_Model):
    """Another file or folder that decisions depend on: evaluation data, an encoder."""

    path: str
    sha256: str


class CardExample(_Model):
    """A dropped row."""

    file: str
    row: int
    reason: str
    text: str


class CardOperator(_Model):
    """The result of an operator.

    Attributes:
        settings: all of them; paths are relative to the card's folder.
        versions: of the libraries that its decisions depend on.
        rows_in, dropped, rows_out: excluding broken rows.
        examples: the first rows it dropped.
    """

    name: str
    settings: dict[str, Any]
    versions: dict[str, str]
    references: list[CardReference]
    rows_in: int
    dropped: int
    rows_out: int
    examples: list[CardExample]


class CardBroken(_Model):
    """Rows that could not be read, by kind, with the first ones."""

    rows: int
    allowed: float
    kinds: dict[str, int]
    examples: list[CardExample]


class CardMedia(_Model):
    """The media files that operators read: how many, and a sha256 over all their contents."""

    files: int
    sha256: str


class CardOutput(_Model):
    """The output.

    Attributes:
        selection: sha256 over the kept rows' places in the inputs.
    """

    path: str
    sha256: str
    rows: int
    selection: str


class Card(_Model):
    """A data card. Paths are relative to the card's folder, unless they are hub names."""

    format: Literal[1] = 1
    modalign: str
    inputs: list[CardInput]
    media_root: str | None
    modalities: list[str]
    columns: dict[str, str] = Field(default_factory=dict)
    examples_per_operator: int
    rows: int
    broken: CardBroken
    operators: list[CardOperator]
    media: CardMedia | None
    distributions: Distributions
    output: CardOutput


def load_card(path: Path) -> Card:
    """Read a card.

    Raises:
        DataError: it is missing or not a card.
    """
    try:
        return Card.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "the file"
        raise DataError(f"{path}: not a data card: {field}: {problem['msg']}") from None


def card_json(card: Card) -> str:
    """Format the card as JSON."""
    return card.model_dump_json(indent=2) + "\n"


def card_markdown(card: Card) -> str:
    """Format the card as Markdown."""
    parts = [
        f"# Data card of {Path(card.output.path).name}",
        f"{card.rows:,} rows in, {card.broken.rows:,} unreadable, {card.output.rows:,} kept. "
        f"modalign {card.modalign}; output sha256 `{card.output.sha256}`.",
        "## Inputs",
        _table(
            ("file", "rows", "sha256"),
            [(i.path, f"{i.rows:,}", f"`{i.sha256}`") for i in card.inputs],
        ),
        "## Operators, in order",
        _table(
            ("operator", "in", "dropped", "out"),
            [
                (o.name, f"{o.rows_in:,}", f"{o.dropped:,}", f"{o.rows_out:,}")
                for o in card.operators
            ],
        ),
        *(_operator(operator) for operator in card.operators),
    ]
    if card.broken.rows:
        parts += ["## Unreadable rows", _examples(card.broken.examples)]
    parts.append("## Before and after")
    titles = {
        "characters of text": card.distributions.characters,
        "answer": card.distributions.answers,
        "longer side of an image, pixels": card.distributions.longer_side,
    }
    parts += [_bins(title, bins) for title, bins in titles.items() if bins]
    return "\n\n".join(parts) + "\n"


def _operator(operator: CardOperator) -> str:
    settings = ", ".join(f"{k} = {v}" for k, v in operator.settings.items() if v is not None)
    lines = [f"### {operator.name}", settings or "no settings"]
    if operator.versions:
        lines.append("With " + ", ".join(f"{k} {v}" for k, v in operator.versions.items()) + ".")
    if operator.references:
        lines.append(
            _table(("read", "sha256"), [(r.path, f"`{r.sha256}`") for r in operator.references])
        )
    lines.append(_examples(operator.examples) if operator.examples else "Dropped nothing.")
    return "\n\n".join(lines)


def _examples(examples: list[CardExample]) -> str:
    rows = [(f"{e.file}:{e.row}", e.reason, e.text) for e in examples]
    return _table(("row", "why", "text"), rows)


def _bins(title: str, bins: list[Bin]) -> str:
    return _table(
        (title, "before", "after"), [(b.name, f"{b.before:,}", f"{b.after:,}") for b in bins]
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "(empty)"
