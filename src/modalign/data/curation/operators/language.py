"""Drop rows in unwanted languages, as detected by py3langid (naive Bayes on byte n-grams)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Literal

from pydantic import Field

from modalign.data.curation.inputs import Row
from modalign.data.curation.libraries import required
from modalign.data.curation.operators.base import FilterJudge, Judge, Operator, Workplace
from modalign.errors import UsageError


class Language(Operator):
    """Keep rows in one of `keep`, and rows whose language is uncertain.

    Attributes:
        keep: ISO 639 codes as py3langid has them (`zxx`: no language).
        of: the whole `text` (user and assistant), the `question` or the `answer`.
        min_chars: shorter texts are kept, because detection needs more text.
        confidence: minimum for the detected language, from 0 to 1; below it a row is `uncertain`.
        uncertain: what to do with such rows.
    """

    name: ClassVar[str] = "language"
    libraries: ClassVar[tuple[str, ...]] = ("py3langid",)

    keep: tuple[str, ...] = Field(min_length=1)
    of: Literal["text", "question", "answer"] = "text"
    min_chars: int = Field(default=20, ge=1)
    confidence: float = Field(default=0.5, ge=0, le=1)
    uncertain: Literal["keep", "drop"] = "keep"

    def start(self, place: Workplace) -> Judge:
        """Begin."""
        return FilterJudge(_Filter(self).reason)


def identifier(codes: Collection[str]) -> Any:
    """Return py3langid's identifier, with probabilities.

    Raises:
        UsageError: it does not know one of the codes.
    """
    langid = required("py3langid.langid", "language")
    found: Any = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    unknown = sorted(set(codes) - set(found.labels))
    if unknown:
        known = ", ".join(sorted(found.labels))
        raise UsageError(f"language: unknown code(s) {', '.join(unknown)}; known: {known}")
    return found


class _Filter:
    def __init__(self, settings: Language) -> None:
        self._settings = settings
        self._identifier = identifier(settings.keep)

    def reason(self, row: Row) -> str | None:
        settings = self._settings
        text: str = getattr(row, settings.of)
        if len(text) < settings.min_chars:
            return None
        language, confidence = self._identifier.classify(text)
        if confidence < settings.confidence:
            if settings.uncertain == "keep":
                return None
            return f"language uncertain: {language} with {confidence:.2f}"
        if language in settings.keep:
            return None
        return f"language {language} with {confidence:.2f}"
