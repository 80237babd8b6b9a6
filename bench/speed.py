"""Is training fast? One command, two comparisons, both sides of each in one run.

(a) The cost of comparing eight prefix methods, with the feature cache and without, where the encoder
    dominates (a SigLIP tower of base size, 86 M parameters, 224 pixels in patches of 32, random weights).
(b) Training samples per second of ``mlp``: ours against a plain padded loop and against transformers'
    ``Trainer`` with length grouping, with the same model, data, features and tokens per batch.

    python -m bench.speed [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    Trainer,
    TrainingArguments,
)

from modalign.cache import cache_directory
from modalign.cli.console import quiet_libraries
from modalign.data.supervision import Sample
from modalign.models.collation import Batch, Collator, Placeholders, RawSignals
from modalign.starter.build import starter
from modalign.training.budget import Budget
from modalign.training.learners import ModelLearner
from modalign.training.methods import resolve_method
from modalign.training.parallel import Parallel
from modalign.training.session import Session
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.sources import DataFiles, Parts, feature_store, fill_store
from modalign.training.splits import load_splits
from modalign.training.trainer import Trainer as OurTrainer

EIGHT = (
    "linear",
    "mlp",
    "avgpool_mlp",
    "pixel_shuffle_linear",
    "pixel_shuffle_mlp",
    "ldpv2",
    "c_abstractor",
    "resampler",
)
IMAGES = 96  # of comparison (a), with all questions about them
SAMPLES = 1600  # in one measured run of (b)
REPEATS = 3
RATES = LearningRates(connector=1e-3, llm=1e-3, encoder=0.0)


def starter_parts() -> tuple[Parts, DataFiles]:
    """Return the starter's models and files."""
    files = starter()
    parts = Parts(
        llm=str(files.llm),
        encoder={"image": str(files.encoder)},
        feature_layer=-1,
        image_size=48,
        patch_size=8,
    )
    return parts, DataFiles(train=str(files.train), val=str(files.val), eval=str(files.eval))


def big_tower(folder: Path) -> str:
    """Write a SigLIP tower of base size at 224 pixels, patch 32."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=32,
        vision_use_head=False,
    )
    SiglipVisionModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folder)
    return str(folder)


def train_eight(parts: Parts, train: Sequence[Sample], cache: Path | None) -> float:
    """Return the seconds to train eight methods for one pass, encoding included; ``cache`` None: without."""
    settings = TrainSettings(
        llm="frozen", learning_rates=RATES, batch_size=8, checkpoint_seconds=1e9
    )
    started = time.perf_counter()
    for name in EIGHT:
        with tempfile.TemporaryDirectory() as scratch:
            # A session that gets no samples encodes nothing in advance.
            ahead = train if cache is not None else []
            session = Session(
                resolve_method(name), parts, settings, ahead, [], cache or Path(scratch), 0
            )
            if cache is None:
                entry = session.collator.entries["image"]
                assert isinstance(entry, Placeholders)
                entry.source = RawSignals(session.encoders[0])
            learner = ModelLearner(session.model, train, session.collator, settings, Stage())
            _trainer(learner, settings, Budget("samples", len(train)), Path(scratch) / "run").run()
    return time.perf_counter() - started


def _trainer(
    learner: ModelLearner, settings: TrainSettings, budget: Budget, out: Path
) -> OurTrainer:
    return OurTrainer(
        learner, Stage(), settings, settings.learning_rates, budget, out, 0, Parallel(settings)
    )


def cache_comparison() -> dict[str, float]:
    """Run comparison (a): with the cache against without."""
    parts, files = starter_parts()
    with tempfile.TemporaryDirectory() as folder:
        tower = big_tower(Path(folder) / "tower")
        parts = parts.model_copy(update={"encoder": {"image": tower}, "image_size": 224})
        train = [s for s in load_splits(files, parts.load_llm().tokenizer).train if s.media]
        images = set(list({s.media[0]: None for s in train})[:IMAGES])
        chosen = [s for s in train if s.media[0] in images]
        cached = train_eight(parts, chosen, Path(folder) / "cache")
        plain = train_eight(parts, chosen, None)
    return {"cached_seconds": cached, "uncached_seconds": plain, "ratio": plain / cached}


# ----------------------------------------------------------------------------- (b)


def new_session(packing: bool = False) -> tuple[Session, list[Sample]]:
    """Open ``mlp`` on the starter, with the language model trained in full: every side trains the same weights."""
    parts, files = starter_parts()
    splits = load_splits(files, parts.load_llm().tokenizer)
    settings = TrainSettings(
        llm="full", learning_rates=RATES, batch_size=32, checkpoint_seconds=1e9, packing=packing
    )
    (store_encoder,) = parts.load_encoders([])
    fill_store(
        feature_store(store_encoder, cache_directory()),
        store_encoder,
        splits.media(),
        torch.device("cpu"),
    )
    session = Session(
        resolve_method("mlp"), parts, settings, splits.train, [], cache_directory(), 0
    )
    return session, list(splits.train)


def ours(session: Session, samples: Sequence[Sample]) -> float:
    """Return the samples per second of our trainer."""
    learner = ModelLearner(session.model, samples, session.collator, session.settings, Stage())
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(learner, session.settings, Budget("samples", SAMPLES), Path(scratch))
        trainer.save = lambda: None  # type: ignore[method-assign]  # neither of the others saves
        started = time.perf_counter()
        outcome = trainer.run()
        return outcome.ledger.samples / (time.perf_counter() - started)


def padded_loop(session: Session, samples: Sequence[Sample], batch_size: int) -> float:
    """Return the samples per second of the usual loop: random padded batches, loss over all logits."""
    optimizer = torch.optim.AdamW(
        (p for p in session.model.parameters() if p.requires_grad), lr=1e-3
    )
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    done, started = 0, time.perf_counter()
    while done < SAMPLES:
        batch = session.collator([samples[i] for i in order[done : done + batch_size]])
        inputs, labels = plain_inputs(batch)
        logits = session.model(**inputs, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(session.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done += batch_size
    return done / (time.perf_counter() - started)


def plain_inputs(batch: Batch) -> tuple[dict[str, Any], torch.Tensor]:
    """Return a batch as an ordinary model call, without selecting positions, and its labels."""
    inputs = batch.model_inputs()
    del inputs["logits_to_keep"]
    labels = torch.full_like(batch.input_ids, -100)
    labels[:, 1:][batch.keep[:, :-1]] = batch.targets
    return inputs, labels


class _Lengths(torch.utils.data.Dataset):
    """Samples with their lengths, which length grouping needs."""

    def __init__(self, samples: Sequence[Sample], collator: Collator) -> None:
        self.samples = list(samples)
        self.lengths = [collator.length(s) for s in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"sample": self.samples[index], "input_ids": range(self.lengths[index])}


class _Wrapped(nn.Module):
    """The same model as the Trainer calls it, returning a loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(**inputs, use_cache=False).logits
        return {
            "loss": nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
        }


def hugging_face(session: Session, samples: Sequence[Sample], batch_size: int) -> float:
    """Return the samples per second of transformers' Trainer with length grouping."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs, labels = plain_inputs(session.collator([row["sample"] for row in rows]))
        return {"inputs": inputs, "labels": labels}

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=batch_size,
            max_steps=SAMPLES // batch_size,
            learning_rate=1e-3,
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=_Wrapped(session.model),
            args=arguments,
            train_dataset=_Lengths(samples, session.collator),
            data_collator=collate,
        )
        started = time.perf_counter()
        trainer.train()
        return (SAMPLES // batch_size) * batch_size / (time.perf_counter() - started)


def same_tokens(session: Session, samples: Sequence[Sample]) -> int:
    """Return the batch size at which randomly padded batches hold as many positions as our batches of 32."""
    collator = session.collator
    learner = ModelLearner(session.model, samples, collator, session.settings, Stage())
    with tempfile.TemporaryDirectory() as scratch:
        order = _trainer(learner, session.settings, Budget("samples", 1), Path(scratch)).order
    grouped = [learner.collate(order.batch(step)).input_ids.numel() for step in range(40)]
    order_random = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    widest = [
        max(collator.length(samples[i]) for i in order_random[k : k + 32])
        for k in range(0, 1280, 32)
    ]
    return max(1, round(statistics.mean(grouped) / statistics.mean(widest)))


def packed_equals_unpacked(samples: Sequence[Sample]) -> float:
    """Return the largest difference between a batch's losses, packed and unpacked."""
    session, _ = new_session()
    packed, _ = new_session(packing=True)
    differences = []
    for start in range(0, 128, 32):
        chosen = list(samples[start : start + 32])
        losses = []
        for each in (session, packed):
            batch = each.collator(chosen)
            with torch.inference_mode():
                logits = session.model(**batch.model_inputs(), use_cache=False).logits
            losses.append(float(nn.functional.cross_entropy(logits.float(), batch.targets)))
        differences.append(abs(losses[0] - losses[1]))
    return max(differences)


def training_comparison() -> dict[str, float]:
    """Run comparison (b): ours, the padded loop and the Trainer in turn, several times; medians of ratios."""
    session, samples = new_session()
    batch_size = same_tokens(session, samples)
    runs: dict[str, Callable[[], float]] = {
        "ours": lambda: ours(session, samples),
        "padded": lambda: padded_loop(session, samples, batch_size),
        "trainer": lambda: hugging_face(session, samples, 32),
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            found[name].append(run())
    ratios = {
        f"ours_over_{name}": statistics.median(
            a / b for a, b in zip(found["ours"], found[name], strict=True)
        )
        for name in ("padded", "trainer")
    }
    medians = {f"{name}_samples_per_second": statistics.median(v) for name, v in found.items()}
    difference = packed_equals_unpacked(samples)
    return {
        **medians,
        **ratios,
        "padded_batch_size": batch_size,
        "packed_loss_difference": difference,
    }


def main() -> None:
    """Run both and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["cache", "training"])
    options = parser.parse_args()
    quiet_libraries()
    found: dict[str, dict[str, float]] = {}
    if options.only != "training":
        found["cache"] = cache_comparison()
    if options.only != "cache":
        found["training"] = training_comparison()
    if options.json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        print(name)
        for key, value in values.items():
            print(f"  {key:32} {value:12.4g}")


if __name__ == "__main__":
    main()
