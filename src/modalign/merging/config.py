"""What a merge depends on: parents, method, coefficients, data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from modalign.errors import UsageError
from modalign.merging.vocabulary import Tokens
from modalign.training.settings import TrainSettings

LEARNED = "learned"


class Learning(BaseModel):
    """How ``learned`` finds its coefficients (SoupLM, arXiv 2407.08196).

    Attributes:
        steps: of Adam.
        rate: its learning rate.
        batch_size: windows or records of a step.
        pull: to the given weights: so many times the mean squared distance from them is added to the loss.
    """

    model_config = ConfigDict(extra="forbid")

    steps: PositiveInt = 60
    rate: float = Field(default=0.05, gt=0)
    batch_size: PositiveInt = 8
    pull: float = Field(default=0.0, ge=0)


class MergeConfig(BaseModel):
    """What to merge, and how.

    Attributes:
        parents: name -> folder, in order.
        base: folder of the model that they came from.
        method: a registered merge method, or ``learned``.
        options: of the method.
        weight: coefficients (:class:`modalign.merging.coefficients.Coefficients`).
        like: the parent that gives configuration and vocabulary; None: the one with most tensors.
        assign: whose tensors are that not every parent has (:func:`modalign.merging.alignment.align`).
        tokens: whether tokenizers must be the same or rows are mapped.
        form: a model folder, or a soup patch for the base (without one: for the first parent).
        search: values of one coefficient, ``NAME=V1,V2``: ``weight`` or an option of the method.
        train, val, evaluation: domain -> file: for joint training; to choose and learn by; to judge by.
        joint: budget of the joint training.
        learning: of the method ``learned``.
        training: settings of the joint training.
        length: tokens of a window of plain text.
        limit: records of a domain that are judged at most.
        seed: of what is drawn.
    """

    model_config = ConfigDict(extra="forbid")

    parents: Annotated[dict[str, str], Field(min_length=2)]
    base: str | None = None
    method: str = "linear"
    options: dict[str, Any] = Field(default_factory=dict)
    weight: list[str] = Field(default_factory=list)
    like: str | None = None
    assign: list[str] = Field(default_factory=list)
    tokens: Tokens = "same"
    form: Literal["folder", "patch"] = "folder"
    search: str | None = None
    train: dict[str, str] = Field(default_factory=dict)
    val: dict[str, str] = Field(default_factory=dict)
    evaluation: dict[str, str] = Field(default_factory=dict)
    joint: str | None = None
    learning: Learning = Field(default_factory=Learning)
    training: TrainSettings = Field(default_factory=lambda: TrainSettings(llm="full"))
    length: int = Field(default=256, ge=2)
    limit: PositiveInt = 512
    seed: int = 0

    @field_validator("training", mode="before")
    @classmethod
    def _whole(cls, training: Any) -> Any:
        """Train the whole language model unless something else is said."""
        return {"llm": "full", **training} if isinstance(training, dict) else training

    @model_validator(mode="after")
    def _fields_agree(self) -> MergeConfig:
        if self.search is not None and self.method == LEARNED:
            raise ValueError("--search tries given values; learned finds its own")
        if (self.search is not None or self.method == LEARNED) and not self.val:
            what = "--search" if self.search is not None else "learned"
            raise ValueError(f"{what} chooses on validation data: --val NAME=FILE")
        if self.joint is not None and not self.train:
            raise ValueError("--joint trains on data: --train NAME=FILE")
        if (self.joint is not None) and not self.evaluation:
            raise ValueError("--joint is a row of the report: --eval NAME=FILE")
        return self

    def searched(self) -> tuple[str, list[float]]:
        """Return the name and the values of the search.

        Raises:
            UsageError: it has another form.
        """
        name, _, values = (self.search or "").partition("=")
        try:
            found = [float(value) for value in values.split(",")]
        except ValueError:
            found = []
        if not name or len(found) < 2 or len(set(found)) < len(found):
            raise UsageError(
                f"--search {self.search!r}: give a name and two or more different numbers, such as "
                "weight=0.3,0.5,0.7 or scale=0.5,1"
            )
        return name, found


def named_folders(given: Sequence[str]) -> dict[str, str]:
    """Return name -> folder of ``FOLDER`` or ``NAME=FOLDER``; folders of one name are told apart by their parents.

    Raises:
        UsageError: two have one name.
    """
    found: dict[str, str] = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not sign or Path(text).exists():
            name, folder = Path(text).name or text, text
        if name in found:
            raise UsageError(
                f"two parents are called {name!r}: name them, such as first={found[name]} second={folder}"
            )
        found[name] = folder
    return found


def named_files(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """Return domain -> file of ``NAME=FILE``, or ``FILE`` under the name of the file.

    Raises:
        UsageError: two have one name, or there is no such file.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, sign, file = text.partition("=")
        if not sign or Path(text).exists():
            name, file = Path(text).stem, text
        if name in found:
            raise UsageError(f"{option}: two domains are called {name!r}; name them NAME=FILE")
        if not Path(file).exists():
            raise UsageError(f"{option}: there is no file {file}")
        found[name] = file
    return found
