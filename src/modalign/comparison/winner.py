"""The winner's folder, and the examples that every method answers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from modalign.comparison.inference import chosen_examples
from modalign.comparison.job import Job, JobResult, load_task
from modalign.comparison.prepared import Prepared
from modalign.comparison.report.view import confidence_words
from modalign.comparison.results import Comparison, Example
from modalign.data.modalities import modality_of
from modalign.data.supervision import Sample
from modalign.evaluation.guessing import BlindGuess
from modalign.models.asking import conversation_of
from modalign.models.export import (
    Expected,
    observe,
    save_model,
    verify_in_clean_process,
    verify_saved,
)
from modalign.models.export.folder import widest_dtype
from modalign.models.export.verify import NEW_TOKENS, tolerance_of
from modalign.numbers import words as fmt
from modalign.progress import Progress
from modalign.training.session import Session
from modalign.training.tool_models import save_with_tools


def trained_session(job: Job, cache: Path) -> Session:
    """Rebuild the session of a finished job, with its trained weights."""
    session = load_task(job.folder, job.key, cache).session()
    session.load_trained(load_file(job.run / "trained.safetensors"))
    session.merge_lora()
    session.model.eval()
    return session


def _picture(sample: Sample) -> str | None:
    """Return a picture of the first medium, if its modality has one."""
    first = sample.media[0]
    picture = modality_of(first.modality).picture
    return base64.b64encode(picture(first)).decode() if picture is not None else None


def examples(prepared: Prepared, results: Sequence[JobResult]) -> list[Example]:
    """Return the example questions with the answers of every method's first training."""
    samples = chosen_examples(
        prepared.splits.evaluation or prepared.splits.val, prepared.config.examples
    )
    found = [
        Example(
            id=sample.record.id,
            image_png_base64=_picture(sample),
            question=" ".join(m.text for m in sample.record.messages if m.role == "user"),
            expected=sample.record.answer,
            skill=sample.record.skill,
        )
        for sample in samples
    ]
    for result in results:
        for example, answer in zip(found, result.examples, strict=False):
            example.answers[result.method] = answer
            example.correct[result.method] = answer.strip() == example.expected.strip()
    return found


def save_winner(
    prepared: Prepared,
    comparison: Comparison,
    results: Sequence[JobResult],
    progress: Progress | None = None,
) -> Path:
    """Save the chosen method's best seed (by validation) as a Hugging Face folder, and check it.

    If no method is recommended, save the best so far and say so in the card.

    The saved model is reloaded and compared with the trained one; a folder
    with its own code is also loaded by transformers without modalign.
    """
    assert comparison.recommendation is not None
    name = comparison.recommendation.saved
    trained = [r for r in results if r.method == name and r.failure is None]
    best = min(
        trained, key=lambda r: (r.val_loss if r.val_loss is not None else float("inf"), r.seed)
    )
    session = trained_session(Job(prepared.out, name, best.seed), prepared.cache)
    folder = prepared.out / "best"
    if progress:
        progress("saving the winner", 0, 1)
    guess = BlindGuess.of(sample.record for sample in prepared.splits.train)
    if session.method.tools:
        save_with_tools(session, folder, _card(comparison))
        guess.save(folder)
        return folder
    card, dtype = _card(comparison), session.saved_dtype
    saved = save_model(session.model, session.processor, folder, card=card, dtype=dtype)
    guess.save(folder)
    samples = [s for s in prepared.splits.val if s.media][:4] or prepared.splits.val[:4]
    conversations = [conversation_of(sample.record, session.processor) for sample in samples]
    seen = observe(session.model, session.processor, conversations, NEW_TOKENS)
    verify_saved(folder, session.model, session.processor, conversations, seen=seen)
    if saved.kind == "remote-code":
        limit = tolerance_of(session.model)
        wanted = Expected(
            folder, conversations, seen, limit, NEW_TOKENS, dtype=widest_dtype(session.model)
        )
        verify_in_clean_process([wanted])
    if progress:
        progress("saving the winner", 1, 1)
    return folder


def _card(comparison: Comparison) -> str:
    """The measured comparison, for the model card."""
    recommendation = comparison.recommendation
    assert recommendation is not None
    among = f"among {len(comparison.methods)} methods"
    said = (
        f"**Not recommended.** `modalign compare` found no method {among} that is worth taking; this is the "
        f"best so far. {recommendation.reason}"
        if recommendation.method is None
        else f"Chosen by `modalign compare` {among}: {recommendation.reason} {recommendation.price} "
        f"{confidence_words(recommendation)}"
    )
    lines = [
        said,
        "",
        "| method | family | accuracy | trainable parameters | tokens |",
        "|---|---|---|---|---|",
    ]
    for method in sorted(comparison.methods, key=lambda m: m.rank or 10**6):
        accuracy = fmt.interval(method.accuracy_interval) if method.accuracy_interval else "failed"
        lines.append(
            f"| {method.name} | {method.family} | {accuracy} | "
            f"{fmt.count(method.trainable_parameters)} | {fmt.count(method.tokens)} |"
        )
    parts = comparison.setting
    lines += [
        "",
        f"Language model: {parts.llm}. Encoder: {parts.encoder}. Their licences apply to these weights.",
    ]
    return "\n".join(lines)
