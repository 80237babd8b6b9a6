"""The operators of a curation, one per file, by name."""

from __future__ import annotations

from modalign.data.curation.operators.balance import AnswerBalance
from modalign.data.curation.operators.base import Judge, Operator, Workplace
from modalign.data.curation.operators.contamination import Contamination
from modalign.data.curation.operators.exact_duplicates import ExactDuplicates
from modalign.data.curation.operators.image_size import ImageSize
from modalign.data.curation.operators.language import Language
from modalign.data.curation.operators.length import Length
from modalign.data.curation.operators.near_images import NearImages
from modalign.data.curation.operators.near_texts import NearTexts
from modalign.data.curation.operators.similarity import ImageTextSimilarity

OPERATORS: dict[str, type[Operator]] = {
    operator.name: operator
    for operator in (
        ExactDuplicates,
        Length,
        Language,
        ImageSize,
        Contamination,
        NearTexts,
        NearImages,
        ImageTextSimilarity,
        AnswerBalance,
    )
}
"""In the order in which the command line applies them: cheap ones first, balancing the rest last."""

__all__ = [
    "OPERATORS",
    "AnswerBalance",
    "Contamination",
    "ExactDuplicates",
    "ImageSize",
    "ImageTextSimilarity",
    "Judge",
    "Language",
    "Length",
    "NearImages",
    "NearTexts",
    "Operator",
    "Workplace",
]
