"""The inputs of a comparison: checked before step 0 and stored in its folder for the jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from modalign.comparison.config import CompareConfig
from modalign.comparison.metrics import Metric
from modalign.comparison.planning import plan_budget
from modalign.comparison.racing import BEGINNING, Total
from modalign.data.modalities import blank_like
from modalign.data.records import Media, Message, Record, Source
from modalign.data.stored import MediaOf, StoredSamples, write_samples
from modalign.data.supervision import Sample
from modalign.errors import UsageError
from modalign.progress import Progress
from modalign.training.budget import Budget
from modalign.training.doctor.preflight import Room, preflight
from modalign.training.methods import Method
from modalign.training.objectives import check_stages
from modalign.training.parallel import device_of
from modalign.training.recipes import check_data
from modalign.training.sources import feature_store, fill_store, runs_with_model
from modalign.training.splits import Splits, few_to_choose_by, load_splits, that_fit
from modalign.training.tool_methods import entries_of

DATA = "data"  # folder within a comparison for the jobs' inputs


@dataclass
class Prepared:
    """Inputs shared by all jobs."""

    config: CompareConfig
    methods: list[Method]
    splits: Splits
    blanks: dict[str, Media]
    cache: Path
    out: Path

    def method(self, name: str) -> Method:
        """Return the method with this name."""
        return next(method for method in self.methods if method.name == name)

    def store(self) -> None:
        """Write the data to the folder, for memory-mapping by the jobs."""
        splits = self.splits
        for name, samples in (
            ("train", splits.train),
            ("val", splits.val),
            ("eval", splits.evaluation),
            ("text", splits.text),
            ("blank", [_alone(medium) for medium in self.blanks.values()]),
        ):
            write_samples(self.out / DATA / f"{name}.arrow", samples)


def _alone(medium: Media) -> Sample:
    """Wrap a medium as a sample without tokens."""
    record = Record(medium.modality, (Message("user", (medium,)),), Source("blank", 1))
    return Sample(record, np.zeros(0, np.int64), np.zeros(0, bool), (medium,))


@dataclass(frozen=True)
class StoredData:
    """The data of a comparison, as read by its jobs.

    Attributes:
        train, val, evaluation: samples; the last two are decoded, since they are read many times.
        text: text-only records, for recipes that mix them in.
        blanks: modality -> its blank medium.
    """

    train: Sequence[Sample]
    val: Sequence[Sample]
    evaluation: Sequence[Sample]
    text: Sequence[Sample]
    blanks: dict[str, Media]

    @classmethod
    def read(cls, folder: Path) -> StoredData:
        """Memory-map a comparison's data.

        Raises:
            UsageError: the folder contains none.
        """
        try:
            train, val, evaluation, text, blank = (
                StoredSamples(folder / DATA / f"{name}.arrow")
                for name in ("train", "val", "eval", "text", "blank")
            )
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder} holds no prepared data ({error})") from error
        blanks = {sample.media[0].modality: sample.media[0] for sample in blank}
        return cls(train, val[:], evaluation[:], text, blanks)


def prepare(
    config: CompareConfig, out: Path, cache: Path, progress: Progress | None = None
) -> Prepared:
    """Validate everything before step 0: names, budget, files, template; then fill the feature cache."""
    methods = config.resolved()
    for method in methods:
        check_stages(method.stages, everywhere=True)
    Budget.parse(config.budget)
    metric = Metric.named(config.metric)
    if config.plan_for is not None:
        if metric.task is not None:
            raise UsageError(
                f"--plan-for reads learning curves, which are of exact match, not of {config.metric}: leave "
                "one out"
            )
        plan_budget(config.plan_for, config.budget)
    if config.seeds == "auto":
        Total.of(config.total, len(methods))
    llm = config.parts.load_llm()
    splits = load_splits(config.data, llm.tokenizer, progress, config.parts.modalities, config.seed)
    splits = that_fit(splits, config.parts, config.data, progress)
    metric.check([*splits.val, *splits.evaluation])
    if not splits.evaluation:
        splits.notes.append(
            "No evaluation data was given (--eval): accuracies are on validation data."
        )
    if few := few_to_choose_by(len(splits.val)):
        splits.notes.append(f"{few[0].upper()}{few[1:]}.")
    for method in methods:
        splits.notes += check_data(method.name, method.stages, splits.train, splits.text)
    media = splits.media()
    blanks = {medium.modality: medium for medium in reversed(media)}
    blanks = {modality: blank_like(medium) for modality, medium in blanks.items()}
    media += blanks.values()
    fill_caches(config, methods, MediaOf(splits.train), media, cache, llm.tokenizer, progress)
    named = {word.strip() for word in config.methods}
    warnings, refused = preflight(
        config.parts,
        splits,
        config.training,
        methods,
        cache,
        llm=llm,
        processes=config.workers,
        optional={method.name for method in methods} - named,
        room=Room(out, BEGINNING if config.seeds == "auto" else config.seeds, _written(out)),
    )
    splits.notes += [*warnings, *(f"Left out: {name}: {why}" for name, why in refused.items())]
    methods = [method for method in methods if method.name not in refused]
    if not methods:
        raise UsageError(f"no method can work between these parts: {'; '.join(refused.values())}")
    return Prepared(config, methods, splits, blanks, cache, out)


def _written(out: Path) -> int:
    """Bytes of the results that an earlier run left."""
    return sum(file.stat().st_size for file in out.rglob("*.safetensors") if file.is_file())


def fill_caches(
    config: CompareConfig,
    methods: Sequence[Method],
    train: Iterable[Media],
    media: Sequence[Media],
    cache: Path,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress | None = None,
) -> None:
    """Compute everything shared by all trainings: features of frozen encoders and tool results.

    Args:
        config: of the comparison.
        methods: methods whose encoders and tools to run.
        train: the training media, which define some encoders.
        media: all media needed.
        cache: folder of features and results.
        tokenizer: of the language model.
        progress: called with the progress.
    """
    for tools in dict.fromkeys(method.tools for method in methods if method.tools):
        chain, _ = entries_of(tools, config.parts, tokenizer, cache)
        if chain is not None:
            chain.fill(media, progress)
    for raw in sorted({method.facts.raw_input for method in methods if not method.tools}):
        for encoder in config.parts.load_encoders(train, raw):
            if not runs_with_model(encoder, config.training.encoder, raw):
                store, device = feature_store(encoder, cache), device_of(config.training)
                fill_store(store, encoder, media, device, progress)
