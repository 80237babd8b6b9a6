"""What would go wrong, said before step 0.

``examine`` looks at everything and stops at nothing: files, split, template, supervised tokens, every
method's placeholders, lengths, steps and memory. ``preflight`` is the cheap part of it, run before
every training: it raises on what would end a run, and returns what is only worth a warning.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel

from modalign.connectors.base import ConnectorError, InLayerConnector
from modalign.data.batching import BatchOrder
from modalign.data.readers import read_records
from modalign.data.records import Media, Record
from modalign.data.splits import leakage, split_validation
from modalign.data.supervision import Sample, tokenise_all
from modalign.data.validation import BrokenData, parse_share, validate
from modalign.errors import DataError, ModalignError
from modalign.models.compose import (
    DEFAULT_CHAT_TEMPLATE,
    IMAGE_TOKEN,
    Encoder,
    LanguageModel,
    compose,
)
from modalign.models.modeling import PlaceholderError
from modalign.models.parts import PartNotFoundError
from modalign.training.budget import Budget
from modalign.training.collation import Batch, CachedFeatures, Collator, MediaSource, Pixels
from modalign.training.costs import CostModel
from modalign.training.learners import captions
from modalign.training.memory import (
    Composed,
    MemoryEstimate,
    estimate_memory,
    readable,
    resident,
    return_freed_memory,
)
from modalign.training.methods import Method
from modalign.training.session import TRIAL_SHARE
from modalign.training.settings import TrainSettings
from modalign.training.sources import (
    DataFiles,
    Parts,
    Progress,
    Splits,
    feature_store,
    fill_store,
)
from modalign.training.trainable import PartCount, add_lora, count_parts, freeze
from modalign.training.trainer import device_of

T = TypeVar("T")
Status = Literal["ok", "warning", "error"]

FIRST_BATCHES = 8
MUCH_PADDING = 0.3
FEW_STEPS = 50
_ANY_SHARE = 1 - 1e-9  # go on with whatever rows are left, to find more than one problem at a time


class Check(BaseModel):
    """One thing that was looked at.

    Attributes:
        section: data, text, encoder, methods or machine.
        name: of the check; unique together with the method it names.
        status: ok, warning or error.
        detail: what was found.
        advice: what to do about it.
        exit_code: of an error: 3 data, 2 usage, 1 other.
    """

    section: str
    name: str
    status: Status
    detail: str
    advice: str | None = None
    exit_code: int = 0


class Segment(BaseModel):
    """A stretch of the decoded sample."""

    text: str
    supervised: bool


class PartRow(BaseModel):
    """Parameters of one part, and how many of them train."""

    part: str
    parameters: int
    trainable: int


class MethodFacts(BaseModel):
    """What one method comes to on this data.

    Attributes:
        tokens: positions one medium takes in the language model (a mark for in-layer methods).
        features: what the connector really gave for one medium; None if it could not be run.
        longest: tokens of the longest sample; ``limit`` what the language model reads.
        padding: share of positions without a token in the first batches.
        steps: optimizer steps of each stage that the budget pays for, trials aside; None if the
            budget is in seconds.
        parts: what trains.
        memory: the estimated peak.
    """

    name: str
    family: str
    enters: str
    tokens: int = 0
    features: int | None = None
    longest: int = 0
    limit: int | None = None
    padding: float = 0.0
    steps: dict[str, int] | None = None
    parts: list[PartRow] = []
    memory: MemoryEstimate | None = None


class Diagnosis(BaseModel):
    """Everything that was found."""

    checks: list[Check] = []
    sample: list[Segment] = []
    sample_source: str | None = None
    encoder: dict[str, dict[str, Any]] = {}
    methods: list[MethodFacts] = []

    def add(self, section: str, name: str, detail: str, advice: str | None = None) -> None:
        """Note that something is as it should be, or (with advice) that it is not quite."""
        status: Status = "warning" if advice else "ok"
        check = Check(section=section, name=name, status=status, detail=detail, advice=advice)
        self.checks.append(check)

    def fail(self, section: str, name: str, error: Exception, advice: str | None = None) -> None:
        """Note an error."""
        code = error.exit_code if isinstance(error, ModalignError) else 1
        self.checks.append(
            Check(
                section=section,
                name=name,
                status="error",
                detail=str(error),
                advice=advice,
                exit_code=code,
            )
        )

    def of(self, status: Status) -> list[Check]:
        """Checks with a status."""
        return [check for check in self.checks if check.status == status]

    @property
    def exit_code(self) -> int:
        """That of the first error; 0 without one."""
        errors = self.of("error")
        return errors[0].exit_code if errors else 0


# --- composed models that are thrown away again --------------------------------------------------


class OnDemand(CachedFeatures):
    """Features from the store; what it lacks is encoded when it is asked for."""

    def __init__(self, encoder: Encoder, cache: Path, device: torch.device) -> None:
        super().__init__(feature_store(encoder, cache))
        self.encoder, self.device = encoder, device

    def fetch(self, media: Sequence[Media]) -> dict[str, object]:
        """Features of the media, in order."""
        fill_store(self.store, self.encoder, media, self.device)
        return super().fetch(media)


@dataclass
class Subject:
    """A method's model around parts that others use too; the same names as a session's."""

    model: Any
    collator: Collator
    settings: TrainSettings
    train_samples: Sequence[Sample]
    val_samples: Sequence[Sample]
    method: Method
    seed: int = 0


@dataclass
class Workshop:
    """Parts, loaded once, and the models that are built around them one after the other."""

    parts: Parts
    llm: LanguageModel
    settings: TrainSettings
    train: Sequence[Sample]
    val: Sequence[Sample]
    cache: Path
    encoders: dict[bool, Encoder] = field(default_factory=dict)
    sources: dict[bool, MediaSource] = field(default_factory=dict)

    def encoder(self, raw: bool) -> Encoder:
        """The encoder, or raw patches."""
        if raw not in self.encoders:
            self.encoders[raw] = self.parts.load_encoder(raw)
        return self.encoders[raw]

    def source(self, raw: bool) -> MediaSource:
        """Where media come from, as in a session."""
        if raw not in self.sources:
            encoder, device = self.encoder(raw), device_of(self.settings)
            pixels = self.settings.encoder == "full" and not raw
            self.sources[raw] = (
                Pixels(encoder.processor) if pixels else OnDemand(encoder, self.cache, device)
            )
        return self.sources[raw]

    @contextmanager
    def subject(self, method: Method, lora: bool = True) -> Iterator[Subject]:
        """A method's model; hooks and LoRA are taken out afterwards. No random number is drawn.

        Args:
            method: what to compose.
            lora: put LoRA in where the settings ask for it.
        """
        raw, settings = method.cls.raw_input, self.settings
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, processor = compose(
                self.llm, self.encoder(raw), method.connector, method.variant
            )
            adapters = add_lora(model, settings) if lora and settings.llm == "lora" else None
        stage = method.stages[-1]
        try:
            if settings.gradient_checkpointing:
                model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
            model.to(device_of(settings))
            llm, tower = stage.llm or settings.llm, stage.encoder or settings.encoder
            freeze(model, llm, tower, settings.learning_rates)
            tokens = processor.num_image_tokens
            collator = self._collator(model, tokens, self.source(raw))
            yield Subject(model, collator, settings, self.train, self.val, method)
        finally:
            if adapters is not None:
                adapters.unload()
                if hasattr(self.llm.model, "peft_config"):
                    del self.llm.model.peft_config
            connector = model.connector("image")
            if isinstance(connector, InLayerConnector):
                connector.detach()

    def _collator(self, model: Any, tokens: int, source: MediaSource) -> Collator:
        tokenizer: Any = self.llm.tokenizer
        return Collator(
            source=source,
            token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            tokens_per_medium=tokens,
            pad_id=tokenizer.pad_token_id or 0,
            pack_length=self.settings.pack_length if self.settings.packing else None,
            max_length=getattr(model.config.text_config, "max_position_embeddings", None),
        )


# --- checks of one method ------------------------------------------------------------------------


def features_given(subject: Composed, whole: bool = True) -> int | None:
    """Run the collator and the connector on real samples; compare placeholders with features.

    Args:
        subject: a session or what stands for it.
        whole: also run the language model on them.

    Returns:
        Tokens per medium that the connector gave (for in-layer methods: that its layers read).
        None where no sample holds a medium.

    Raises:
        DataError: placeholders and features differ in number.
    """
    chosen = sorted((s for s in subject.train_samples if s.media), key=lambda s: len(s.ids))[:2]
    if not chosen:
        return None
    model, method = subject.model, subject.method
    device = next(model.parameters()).device
    with torch.no_grad(), torch.random.fork_rng():
        batch = subject.collator(chosen).to(device)
        given = _connect(model, batch)
        if whole:
            try:
                model(**batch.model_inputs(), use_cache=False)
            except PlaceholderError as error:
                raise DataError(f"{method.name}: {error}") from error
    places = int((batch.input_ids == subject.collator.token_id).sum())
    media = sum(len(sample.media) for sample in chosen)
    connector = model.connector("image")
    expected = media if isinstance(connector, InLayerConnector) else sum(given)
    if places != expected or len(given) != media:
        raise DataError(
            f"{method.name}: {places} placeholders for {media} media, but the connector gave {expected} "
            "tokens; its num_tokens() and its forward() disagree, or the encoder's grid is not what it says"
        )
    return given[0]


def _connect(model: Any, batch: Batch) -> list[int]:
    """Tokens that the connector gives, per medium."""
    features = batch.features.get("image")
    if features is None:
        assert batch.pixel_values is not None
        features = model.encode("image", batch.pixel_values)
    connector = model.connector("image")
    enter = connector.encode if isinstance(connector, InLayerConnector) else connector
    values = features.values.to(next(connector.parameters()).dtype)
    mask = enter(values, features.mask, features.grid)[1]
    return [int(count) for count in mask.sum(dim=1)]


def too_long(subject: Composed, samples: Sequence[Sample]) -> tuple[int, Sample | None, int]:
    """Length of the longest sample, that sample, and how many the language model cannot read."""
    collator = subject.collator
    more = collator.tokens_per_medium - 1  # one placeholder per medium was made sure of before
    sizes = [len(sample.ids) + len(sample.media) * more for sample in samples]
    if not sizes:
        return 0, None, 0
    limit = collator.max_length
    over = sum(size > limit for size in sizes) if limit is not None else 0
    longest = max(range(len(sizes)), key=sizes.__getitem__)
    return sizes[longest], samples[longest], over


def _length_error(subject: Composed, samples: Sequence[Sample]) -> DataError | None:
    longest, sample, over = too_long(subject, samples)
    if not over or sample is None:
        return None
    return DataError(
        f"{subject.method.name}: {over} of {len(samples)} samples are longer than the "
        f"{subject.collator.max_length} tokens that the language model reads, {sample.record.source} "
        f"with {longest} the longest; shorten them, or choose a method with fewer than "
        f"{subject.collator.tokens_per_medium} tokens per medium"
    )


def _stage_error(method: Method, samples: Sequence[Sample]) -> DataError | None:
    first = any(stage.runs == "stage_one" for stage in method.stages)
    if not first or len(captions(samples)) >= 2:
        return None
    return DataError(
        f"{method.name}: its stage one needs at least two images that have a text of their own; "
        "add such rows, or use the method without its stage one"
    )


# --- before every training -----------------------------------------------------------------------


def preflight(
    parts: Parts,
    splits: Splits,
    settings: TrainSettings,
    methods: Sequence[Method],
    cache: Path,
    *,
    llm: LanguageModel | None = None,
    processes: int = 1,
) -> list[str]:
    """Look for what would end the training of any of these methods.

    Every method's connector is built and run on real samples; one prefix and one in-layer method run
    through the language model; memory is estimated for the method with the most tokens.

    Args:
        parts: language model and encoder.
        splits: tokenised data.
        settings: how to train.
        methods: all that are to be trained.
        cache: of encoder features.
        llm: the language model, where it is loaded already; its weights stay, but not which of
            them train, and it may gain a row for the placeholder.
        processes: how many trainings run at the same time.

    Returns:
        Warnings.

    Raises:
        DataError: a sample that is too long for a method; placeholders unlike features.
        ModalignError: a connector that cannot work between these parts.
    """
    return_freed_memory()
    loaded = llm or parts.load_llm()
    shop = Workshop(parts, loaded, settings, splits.train, splits.val, cache)
    samples = [*splits.train, *splits.val, *splits.evaluation]
    tokens: dict[str, int] = {}
    kinds: set[str] = set()
    errors: list[ModalignError] = []
    for method in methods:
        try:
            tokens[method.name] = _fly(shop, method, samples, method.cls.enters not in kinds)
            kinds.add(method.cls.enters)
        except (ModalignError, ConnectorError, PartNotFoundError) as error:
            errors.append(error if isinstance(error, ModalignError) else _named(method, error))
    if errors:
        raise type(errors[0])("\n".join(str(error) for error in errors))
    heaviest = max(methods, key=lambda method: tokens[method.name])
    with shop.subject(heaviest) as subject:
        warning = estimate_memory(subject).warning(processes)
    return [*_no_media(splits.train), *([f"{heaviest.name}: {warning}"] if warning else [])]


def _fly(shop: Workshop, method: Method, samples: Sequence[Sample], whole: bool) -> int:
    with shop.subject(method, lora=False) as subject:
        found = _length_error(subject, samples) or _stage_error(method, shop.train)
        if found is not None:
            raise found
        features_given(subject, whole=whole)
        return subject.collator.tokens_per_medium


def _named(method: Method, error: Exception) -> ModalignError:
    return ModalignError(f"{method.name}: {error}")


def _no_media(samples: Sequence[Sample]) -> list[str]:
    if any(sample.media for sample in samples):
        return []
    return ["no training record holds an image, so connectors have nothing to learn from"]


def preflight_session(session: Composed, *, processes: int = 1) -> list[str]:
    """The same for one session that is composed already; its random state and weights stay."""
    samples = [*session.train_samples, *getattr(session, "val_samples", [])]
    found = _length_error(session, samples) or _stage_error(session.method, session.train_samples)
    if found is not None:
        raise found
    features_given(session)
    warning = estimate_memory(session).warning(processes)
    return [*_no_media(session.train_samples), *([warning] if warning else [])]


# --- everything ----------------------------------------------------------------------------------


def examine(
    parts: Parts,
    data: DataFiles,
    settings: TrainSettings,
    methods: Sequence[Method],
    *,
    cache: Path,
    budget: Budget | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> Diagnosis:
    """Look at everything that a training of these methods would need.

    Args:
        parts: language model and encoder.
        data: files.
        settings: how to train.
        methods: all that are to be trained.
        cache: of encoder features (only the media that are looked at are encoded).
        budget: of one method, for the number of steps.
        processes: how many trainings run at the same time.
        progress: told (name, done, total).
    """
    return_freed_memory()
    baseline = resident()
    found = Diagnosis()
    llm = _try(found, "text", "language model", parts.load_llm)
    splits = _examine_data(found, data, llm.tokenizer if llm is not None else None, progress)
    if llm is None or splits is None:
        return found
    _examine_text(found, splits, llm.tokenizer)
    shop = Workshop(parts, llm, settings, splits.train, splits.val, cache)
    for raw in sorted({method.cls.raw_input for method in methods}):
        _examine_encoder(found, shop, raw)
    for number, method in enumerate(methods):
        if progress:
            progress("examining methods", number, len(methods))
        if str(method.cls.raw_input) in found.encoder:
            _examine_method(found, shop, method, splits, budget, baseline)
    found.encoder = {"patches" if raw == "True" else "image": v for raw, v in found.encoder.items()}
    if progress:
        progress("examining methods", len(methods), len(methods))
    _examine_machine(found, processes)
    return found


def _try(found: Diagnosis, section: str, name: str, make: Callable[[], T]) -> T | None:
    try:
        return make()
    except ModalignError as error:
        found.fail(section, name, error)
        return None


# --- data ----------------------------------------------------------------------------------------


def _examine_data(
    found: Diagnosis, data: DataFiles, tokenizer: Any, progress: Progress | None
) -> Splits | None:
    train = _examine_file(found, "train", data.train, data, progress)
    val = _examine_file(found, "val", data.val, data, progress)
    evaluation = _examine_file(found, "eval", data.eval, data, progress)
    if train is None or val is None or evaluation is None:
        return None
    if data.val is None:
        split = _try(found, "data", "split", partial(split_validation, train))
        if split is None:
            return None
        train, val = split
    source = "given" if data.val else "a tenth of the training data, no image on both sides"
    counts = f"{len(train)} to train on, {len(val)} for validation ({source})"
    found.add("data", "split", f"{counts}, {len(evaluation)} for evaluation")
    _examine_leaks(found, train, val, evaluation)
    if tokenizer is None:
        return None
    sets = [
        _try(found, "text", f"tokens of {name}", partial(tokenise_all, rows, tokenizer))
        for name, rows in (("train", train), ("val", val), ("eval", evaluation))
    ]
    if any(one is None for one in sets):
        return None
    return Splits(sets[0] or [], sets[1] or [], sets[2] or [], source, 0, [])


def _examine_file(
    found: Diagnosis, name: str, path: str | None, data: DataFiles, progress: Progress | None
) -> list[Record] | None:
    """Usable records of a file (none at all without a path); None where there is no going on."""
    if path is None:
        return []
    tell = (lambda done, total: progress(f"checking {name}", done, total)) if progress else None
    try:
        rows = read_records(path, media_root=data.media_root)
        records, report = validate(rows, skip_broken=_ANY_SHARE, progress=tell)
        allowed = parse_share(data.skip_broken)
    except ModalignError as error:
        found.fail("data", f"{name} file", error)
        return None
    media = len({medium for record in records for medium in record.media()})
    detail = f"{path}: {report.kept} of {report.total} rows usable, {media} media opened"
    if report.dropped > allowed * report.total + 1e-9:
        found.fail("data", f"{name} file", BrokenData(report, allowed))
    elif report.dropped:
        found.add(
            "data", f"{name} file", detail, "look at the rows that are dropped: " + _rows(report)
        )
    else:
        found.add("data", f"{name} file", detail)
    return records


def _rows(report: Any) -> str:
    shown = [str(problem.source) for problem in report.problems[:5]]
    return ", ".join(shown) + (", ..." if len(report.problems) > 5 else "")


def _examine_leaks(
    found: Diagnosis, train: list[Record], val: list[Record], evaluation: list[Record]
) -> None:
    for name, other in (("validation", val), ("evaluation", evaluation)):
        leaks = leakage(train, other) if other else []
        if leaks:
            detail = f"{len(leaks)} images are in the training and in the {name} data"
            places = f"{leaks[0].train} and {leaks[0].evaluation}"
            found.add("data", f"{name} leakage", detail, f"remove them from one side: {places}")
        elif other:
            found.add("data", f"{name} leakage", f"no image is also in the {name} data")


# --- text ----------------------------------------------------------------------------------------


def _examine_text(found: Diagnosis, splits: Splits, tokenizer: Any) -> None:
    template = tokenizer.chat_template or ""
    marked = "{% generation" in template.replace("{%-", "{%")
    how = "by its generation marks" if marked else "by prefix difference (it has no marks)"
    if template.endswith(DEFAULT_CHAT_TEMPLATE):
        advice = "it is saved with the model; set the tokenizer's own before, if it has one"
        found.add("text", "chat template", "the tokenizer has none: a default is used", advice)
    else:
        found.add("text", "chat template", f"the tokenizer's own; answers are found {how}")
    counts = sorted(int(sample.supervised.sum()) for sample in splits.train)
    detail = (
        f"{counts[0]} / {statistics.median(counts):g} / {counts[-1]} per record "
        "(smallest, median, largest)"
    )
    found.add("text", "supervised tokens", detail)
    for text in _no_media(splits.train):
        found.add("text", "media", text, "check the image fields of the training file")
    sample = next((sample for sample in splits.train if sample.media), splits.train[0])
    found.sample_source = str(sample.record.source)
    found.sample = segments(sample, tokenizer)


def segments(sample: Sample, tokenizer: Any) -> list[Segment]:
    """A sample decoded, in stretches that are supervised or not."""
    flags = sample.supervised.tolist()
    bounds = [0, *(i for i in range(1, len(flags)) if flags[i] != flags[i - 1]), len(flags)]
    return [
        Segment(
            text=tokenizer.decode(
                sample.ids[start:stop].tolist(), clean_up_tokenization_spaces=False
            ),
            supervised=flags[start],
        )
        for start, stop in itertools.pairwise(bounds)
    ]


# --- encoder and methods -------------------------------------------------------------------------


def _examine_encoder(found: Diagnosis, shop: Workshop, raw: bool) -> None:
    name = "raw patches" if raw else "image encoder"
    encoder = _try(found, "encoder", name, lambda: shop.encoder(raw))
    if encoder is None:
        return
    module = encoder.module
    found.encoder[str(raw)] = {
        "name": encoder.name,
        "feature_size": module.feature_size,
        "num_features": module.num_features,
        "grid": list(module.grid) if module.grid else None,
    }
    grid = f"{module.grid[0]} x {module.grid[1]}" if module.grid else "none"
    size = f"d = {module.feature_size}, N = {module.num_features}, grid {grid}"
    found.add("encoder", name, f"{encoder.name}: {size}")


def _examine_method(
    found: Diagnosis,
    shop: Workshop,
    method: Method,
    splits: Splits,
    budget: Budget | None,
    baseline: int,
) -> None:
    facts = MethodFacts(name=method.name, family=method.cls.family, enters=method.cls.enters)
    found.methods.append(facts)
    try:
        with shop.subject(method) as subject:
            samples = [*splits.train, *splits.val, *splits.evaluation]
            _measure(found, facts, subject, samples, budget, baseline)
    except (ModalignError, ConnectorError, PartNotFoundError, PlaceholderError) as error:
        named = error if isinstance(error, ModalignError) else _named(method, error)
        found.fail("methods", method.name, named)


def _measure(
    found: Diagnosis,
    facts: MethodFacts,
    subject: Subject,
    samples: Sequence[Sample],
    budget: Budget | None,
    baseline: int,
) -> None:
    collator, method = subject.collator, subject.method
    facts.tokens, facts.limit = collator.tokens_per_medium, collator.max_length
    facts.longest = too_long(subject, samples)[0]
    facts.parts = [_row(part) for part in count_parts(subject.model)]
    if sum(part.trainable for part in facts.parts) == 0:
        raise ModalignError(f"{method.name}: nothing trains; raise a learning rate above 0")
    error = _length_error(subject, samples) or _stage_error(method, subject.train_samples)
    if error is not None:
        raise error
    facts.features = features_given(subject)
    facts.padding = _padding(subject)
    facts.steps = steps_of(subject, budget) if budget is not None else None
    facts.memory = estimate_memory(subject, baseline=baseline)
    kept = "read in the layers" if facts.enters == "in-layer" else "in the text"
    detail = f"{facts.features} tokens per medium {kept}, placeholders agree"
    found.add("methods", method.name, detail, _complaint(facts, subject.settings))


def _row(part: PartCount) -> PartRow:
    return PartRow(part=part.part, parameters=part.parameters, trainable=part.trainable)


def _complaint(facts: MethodFacts, settings: TrainSettings) -> str | None:
    if facts.padding > MUCH_PADDING and not settings.packing:
        return f"{facts.padding:.0%} of the positions are padding: set training.packing=true"
    few = min((facts.steps or {"": FEW_STEPS}).values())
    if few < FEW_STEPS:
        return f"the budget pays for {few} steps only: raise it, or lower training.batch_size"
    return None


def _first_batches(subject: Composed) -> list[list[Sample]]:
    samples = subject.train_samples
    order = BatchOrder(
        [len(sample.ids) for sample in samples],
        subject.settings.batch_size,
        subject.seed,
        [len(sample.media) for sample in samples],
    )
    return [[samples[i] for i in indices] for indices in order.epoch(0)[:FIRST_BATCHES]]


def _lengths(subject: Composed, batch: Sequence[Sample]) -> list[int]:
    collator = subject.collator
    return [sample.length(collator.token_id, collator.tokens_per_medium) for sample in batch]


def _padding(subject: Composed) -> float:
    """Share of padding in the first batches, counted from lengths (rows are not packed here)."""
    lengths = [_lengths(subject, batch) for batch in _first_batches(subject)]
    places = sum(len(batch) * max(batch) for batch in lengths)
    return 1 - sum(sum(batch) for batch in lengths) / places


def steps_of(subject: Composed, budget: Budget) -> dict[str, int] | None:
    """Steps of each stage that a budget pays for after its learning-rate trials."""
    per_step: float = min(subject.settings.batch_size, len(subject.train_samples))
    if budget.kind == "seconds":
        return None
    if budget.kind == "flops":
        per_step = _flops_per_step(subject)
    whole = budget.amount * (1 - TRIAL_SHARE)
    stages = subject.method.stages
    if budget.kind == "flops":  # an earlier stage costs something else per step
        stages = stages[-1:]
    return {stage.name: max(int(whole * stage.share / per_step), 1) for stage in stages}


def _flops_per_step(subject: Composed) -> float:
    costs, settings = CostModel.of(subject.model), subject.settings
    batches = _first_batches(subject)
    total = 0.0
    for batch in batches:
        lengths = _lengths(subject, batch)
        kept = sum(int(sample.supervised.sum()) for sample in batch)
        media = sum(len(sample.media) for sample in batch)
        total += costs.training(
            len(batch), max(lengths), kept, media, settings.llm, settings.encoder
        )
    return total / len(batches)


def _examine_machine(found: Diagnosis, processes: int) -> None:
    known = [(facts, facts.memory) for facts in found.methods if facts.memory is not None]
    if not known:
        return
    facts, memory = max(known, key=lambda pair: pair[1].total)
    have = readable(memory.available) if memory.available is not None else "unknown"
    times = f" in each of {processes} processes" if processes > 1 else ""
    detail = f"at most {readable(memory.total)} ({facts.name}){times}, {have} available"
    found.add("machine", "memory", detail, memory.warning(processes))
