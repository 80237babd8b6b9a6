"""The results of mixing: what report.json holds."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from modalign.mixtures.config import MixConfig
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference
from modalign.version import __version__

OBJECTIVE = "objective"
EQUAL, BY_SIZE = "equal", "by size"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Source(_Strict):
    """A source: its records to train on, its held-out ones, and how many of the first are in another source."""

    name: str
    records: int
    held: int
    elsewhere: int


class Mixture(_Strict):
    """A mixture.

    Attributes:
        name: its weights in words.
        weights: source -> share of the samples; they sum to one.
        roles: ``chosen``, ``equal``, ``by size``, or the name of its only source.
        proxy: target -> figure of the merged experts.
        trained: target -> figure of a model trained on it; none if it was not.
        test: figure of the trained model on the evaluation data.
    """

    name: str
    weights: dict[str, float]
    roles: list[str] = Field(default_factory=list)
    proxy: dict[str, Estimate]
    trained: dict[str, Estimate] = Field(default_factory=dict)
    test: Estimate | None = None


class Mixing(_Strict):
    """Finished mixing.

    Attributes:
        config, command, finished, version: what was asked, how and when.
        sources: the data.
        targets: what figures are of; ``objective`` is what is minimised.
        mixtures: all, the proxy's best first.
        untrained: target -> figure of the start.
        chosen: name of the proxy's best mixture.
        promise: of the chosen one, trained minus proxy; positive is better than promised.
        agreement: target -> Spearman's correlation of proxy and trained over mixtures of several sources.
        differences: the chosen mixture, trained, against the others that need no proxy; Holm.
        test: the same on the evaluation data.
        trainings: that were made; without: that ranking by training would have taken.
        notes: about the data and the run.
    """

    config: MixConfig
    command: str
    finished: str
    version: str = __version__
    sources: list[Source]
    targets: list[str]
    mixtures: list[Mixture]
    untrained: dict[str, Estimate]
    chosen: str
    promise: Difference
    agreement: dict[str, Estimate | None]
    differences: list[Difference]
    test: list[Difference] = Field(default_factory=list)
    trainings: int
    without: int
    notes: list[str] = Field(default_factory=list)

    @property
    def best(self) -> Mixture:
        """The chosen mixture."""
        return next(each for each in self.mixtures if each.name == self.chosen)

    @property
    def checked(self) -> list[Mixture]:
        """The mixtures that were trained for real."""
        return [each for each in self.mixtures if each.trained]
