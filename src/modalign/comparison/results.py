"""The results of a comparison: the versioned contents of ``report.json``.

The other report files are renderings of :class:`Comparison` and compute nothing.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference

SCHEMA_VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class YesNo(_Strict):
    """POPE's measures on questions of yes and no; yes is the positive class (arXiv 2305.10355)."""

    accuracy: Estimate
    precision: Estimate | None = (
        None  # of the answers yes, the share that is right; none: never said
    )
    recall: Estimate | None = None  # of the questions whose answer is yes, the share answered so
    f1: Estimate | None = None
    yes_rate: Estimate  # share of questions answered yes


class CurvePoint(_Strict):
    """One point of a learning curve."""

    samples: int
    seconds: float
    flops: float
    train_loss: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None  # on the questions that the loss is taken on


class Trial(_Strict):
    """One learning-rate trial, paid from the method's budget."""

    learning_rate: float
    samples: int  # under all seeds of the trials
    val_loss: float | None  # mean over them
    val_losses: list[float] = Field(default_factory=list)  # under each; none where one broke down
    kept: bool


class SeedRun(_Strict):
    """One training of one method under one seed."""

    seed: int
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    samples: int
    seconds: float
    flops: float
    curve: list[CurvePoint] = Field(default_factory=list)
    weights: str | None = None  # SHA-256 of trained.safetensors
    answers: str | None = None  # SHA-256 of which were right


class MethodResult(_Strict):
    """Everything measured about one method; accuracy and what follows, on evaluation data."""

    name: str
    family: Literal["converter", "perceiver", "tool", "data"]
    group: str
    variant: str
    enters: str
    papers: list[str]
    status: Literal["ok", "failed"] = "ok"
    failure: str | None = None
    candidate: bool = False  # open to recommendation
    rank: int | None = None  # 1 is best; by validation, never by evaluation data
    accuracy: float | None = None
    accuracy_interval: Estimate | None = None
    skills: dict[str, Estimate] = Field(default_factory=dict)
    transfer: Estimate | None = None  # the skill nobody trained on
    image_gain_blank: Estimate | None = None
    image_gain_shuffled: Estimate | None = None
    hallucination: YesNo | None = None  # where the data have questions of yes and no
    val_accuracy: float | None = None
    untrained_accuracy: Estimate | None = None  # the same model before its first step
    untrained_loss: float | None = None  # nats per answer token on validation data, likewise
    parameters: dict[str, int] = Field(default_factory=dict)  # per part: encoder, connector, llm
    trainable: dict[str, int] = Field(default_factory=dict)  # per part
    trainable_parameters: int | None = None
    tokens: int | None = None  # positions per item in the LLM's input
    flops: float | None = None  # training, all stages, one seed
    inference_flops: float | None = None  # one item, forward
    seconds: float | None = None  # training, one seed (mean), trials included
    peak_memory: int | None = None  # bytes
    time_to_first_answer: float | None = None  # seconds, one image, encoder included
    mir: float | None = None  # modality integration rate (arXiv 2410.07167); prefix methods only
    diagnostics: dict[str, float] = Field(default_factory=dict)  # the connector's own, over seeds
    learning_rate: float | None = None
    trials: list[Trial] = Field(default_factory=list)
    seeds: list[SeedRun] = Field(default_factory=list)
    serving: str = "remote-code"  # rung of the export ladder: native:CLASS, remote-code, tools
    gateway: bool = False  # encoder and connector can run before a language model elsewhere
    served_by: list[str] = Field(default_factory=list)  # what can serve it


class ReferenceRow(_Strict):
    """A row no method was trained for: chance, majority answer, text only."""

    name: str
    accuracy: Estimate
    skills: dict[str, Estimate] = Field(default_factory=dict)


class Hallucination(_Strict):
    """What stands beside the methods' own figures on questions of yes and no."""

    skills: list[str]  # that the questions belong to
    n: int  # questions
    positives: int  # of these, questions whose answer is yes
    references: dict[str, YesNo]  # always yes, majority answer
    differences: list[Difference]  # in accuracy on these questions
    yes_rates: list[Difference] = Field(
        default_factory=list
    )  # share of yes minus that of true ones
    verdict: str  # what they come to, in words


class Recommendation(_Strict):
    """The choice, the rule that made it, and how often the rule makes it again."""

    method: str | None  # None: no candidate beats what a guess or an untrained model reaches
    rule: str
    reason: str
    price: str = ""  # what it costs, and what dearer and cheaper methods give, in plain words
    advice: list[str] = Field(default_factory=list)  # what to change, where there is no choice
    confidence: float | None  # how often another comparison of the same size picks this method
    alternatives: dict[str, float] = Field(default_factory=dict)  # method -> how often it is picked
    best: str  # the candidate with the highest validation accuracy
    indistinguishable: list[str] = Field(default_factory=list)  # as good as the best, best included
    validation: dict[str, Estimate] = Field(default_factory=dict)  # candidate -> its accuracy there
    against: list[Difference] = Field(default_factory=list)  # candidates minus what they must beat

    @property
    def saved(self) -> str:
        """The method in ``best/``: the choice, or the best so far where there is none."""
        return self.method or self.best

    @property
    def of_questions_alone(self) -> bool:
        """Whether the confidence says nothing of other trainings, since nobody was trained twice."""
        return any(each.of_questions_alone for each in self.validation.values())


Stop = Literal["all trained", "sure enough", "total spent", "undecidable", "nothing learnt"]


class Round(_Strict):
    """One look at the trainings so far."""

    added: list[str] = Field(default_factory=list)  # methods trained again since the last look
    trainings: int  # of all methods, so far
    method: str | None  # the choice
    confidence: float | None  # that the rule picks it again


class Schedule(_Strict):
    """Which trainings were run, and why no more."""

    seeds: int | Literal["auto"]  # trainings of every method; auto: added where they decide
    wanted: float | None = None  # confidence that was asked for
    rounds: list[Round] = Field(default_factory=list)
    stop: Stop
    words: str


class Foretold(_Strict):
    """A method at a larger budget, from its learning curves."""

    method: str
    accuracy: Estimate  # on validation questions
    best: float  # probability that it is the best there
    rate: float  # at which log losses fell, per log of samples
    past: Estimate  # loss foretold from its trial for the end of training, at the others' rates
    happened: float  # the loss there


class Crossing(_Strict):
    """Two methods whose order is foretold to turn."""

    leader: str  # now
    behind: str
    budget: float  # at which they are level, in the budget's unit
    probability: float  # that it has turned at the larger budget


class Plan(_Strict):
    """What learning curves foretell for a larger budget."""

    budget: str
    method: str | None  # the best there; None: the curves cannot tell
    words: str
    methods: list[Foretold] = Field(default_factory=list)
    crossings: list[Crossing] = Field(default_factory=list)


class Priced(_Strict):
    """The choice at one budget where compute has one price."""

    share: float | None  # of the budget; none: a larger one
    larger: str | None = None
    price: float  # points of accuracy that a tenfold cost must bring
    method: str
    accuracy: float  # on validation questions
    cost: float
    next: str  # the second
    next_accuracy: float
    next_cost: float


class WhatIf(_Strict):
    """What would be recommended at other budgets and prices of compute."""

    cost: str  # what is priced
    shares: list[float]
    larger: str | None
    prices: list[float]
    picks: list[Priced]  # by budget, then by price


class Contradiction(_Strict):
    """A place where our ordering and a published one disagree, or agree, or cannot be compared."""

    claim: str
    source: str
    ours: str
    outcome: Literal["agrees", "contradicts", "no difference found", "not comparable"]
    advice: str | None = None  # what to suspect before claiming news; only when it contradicts


class Example(_Strict):
    """One evaluation scene, answered by every method."""

    id: str
    image_png_base64: str | None
    question: str
    expected: str
    skill: str | None
    answers: dict[str, str] = Field(default_factory=dict)  # method -> what it generated
    correct: dict[str, bool] = Field(default_factory=dict)  # method -> counted as right; by the
    # task's own metric. Where a method is missing the report compares answer and expectation.


class Setting(_Strict):
    """How the comparison was run: enough to repeat it."""

    command: str
    version: str
    started: str
    finished: str
    seconds: float
    budget: str
    metric: str = "exact"  # what answers were judged by
    llm: str
    encoder: str
    llm_mode: str
    encoder_mode: str
    seeds: list[int]
    device: str
    dtype: str
    threads: int  # of a training
    processor: str = ""
    may_differ: list[str] = Field(default_factory=list)  # why the same command may give other bits
    train_records: int
    val_records: int
    eval_records: int
    val_source: str  # "given" or "a tenth of the training data, grouped by image"
    hashes: dict[str, str] = Field(default_factory=dict)  # data files, weights
    libraries: dict[str, str] = Field(default_factory=dict)
    changed: dict[str, str] = Field(default_factory=dict)  # what differs from the defaults


class Comparison(_Strict):
    """The whole of ``report.json``."""

    schema_version: int = SCHEMA_VERSION
    recommendation: Recommendation | None
    methods: list[MethodResult]
    references: list[ReferenceRow]
    differences: list[Difference]
    hallucination: Hallucination | None = None
    schedule: Schedule | None = None
    plan: Plan | None = None  # where a larger budget was asked about
    what_if: WhatIf | None = None  # where two candidates have learning curves
    contradictions: list[Contradiction]
    examples: list[Example]
    setting: Setting
    notes: list[str] = Field(default_factory=list)
