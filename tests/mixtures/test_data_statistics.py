"""What data is ranked by, against values worked out otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiny
from modalign.data.records import Media, Record
from modalign.data.supervision import Sample, tokenise
from modalign.errors import DataError, UsageError
from modalign.mixtures.statistics import Place, Scorer, asks_model, computed, information


def nowhere(folder: str | None) -> Scorer:
    raise AssertionError("no model is needed")


def texts(*pairs: tuple[str, str], **extra: Any) -> list[Sample]:
    made = []
    for row, (question, answer) in enumerate(pairs):
        record = tiny.record(question, answer, row=row)
        own = {key: values[row] for key, values in extra.items()}
        held = Record(record.id, record.messages, record.source, extra=own)
        made.append(Sample(held, np.array([1, 2]), np.array([False, True])))
    return made


def values(name: str, samples: list[Sample]) -> list[float]:
    return computed(name, samples, Place(nowhere)).tolist()


def test_lengths_and_shares_of_answers() -> None:
    samples = texts(("who?", "a b c"), ("what is it?", "yes"), ("and this?", " Yes"))
    assert values("length", samples) == [10, 15, 14]  # a line each
    assert values("length[of=answer;unit=words]", samples) == [3, 1, 1]
    assert values("answer_balance", samples) == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_near_texts_are_the_largest_jaccard_of_any_two() -> None:
    said = ["abcdefghij", "abcdefghix", "completely other", "abcdefghij"]
    samples = texts(*((text, "y") for text in said))
    grams = [{f"{t}\ny".replace("\n", " ")[i : i + 5] for i in range(len(t) - 2)} for t in said]
    expected = [
        max(len(a & b) / len(a | b) for m, b in enumerate(grams) if m != n)
        for n, a in enumerate(grams)
    ]
    expected = [value if value >= 0.3 else 0.0 for value in expected]
    assert values("near_texts[threshold=0.3]", samples) == pytest.approx(expected)
    assert expected[0] == 1.0


def test_columns_hold_numbers_or_nothing() -> None:
    samples = texts(("a", "b"), ("c", "d"), score=[0.5, None])
    assert values("column[name=score]", samples)[0] == 0.5
    assert np.isnan(values("column[name=score]", samples)[1])
    with pytest.raises(DataError, match="none of the 2 records"):
        values("column[name=other]", samples)
    with pytest.raises(DataError, match=r"data.jsonl:\d.*'high', which is no number"):
        values("column[name=score]", texts(("a", "b"), score=["high"]))


def test_chance_does_not_look_at_the_records() -> None:
    assert values("chance", texts(("a", "b"))) == values("chance", texts(("c", "d")))
    assert values("chance[seed=1]", texts(("a", "b"))) != values("chance", texts(("a", "b")))


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean length"):
        values("lenght", texts(("a", "b")))
    with pytest.raises(UsageError, match="its options are of, unit"):
        values("length[by=words]", texts(("a", "b")))
    assert asks_model("agreement")
    assert not asks_model("agreement[model=x]")
    assert not asks_model("length")


def by_hand(
    model: Any, collator: Any, sample: Sample, media: tuple[Media, ...]
) -> tuple[float, int]:
    """Loss and number of the answer's tokens, from the model's own logits and shifted labels."""
    batch = collator([Sample(sample.record, sample.ids, sample.supervised, media)])
    inputs = batch.model_inputs()
    del inputs["logits_to_keep"]
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[0].float()
    answer = torch.tensor(sample.ids[sample.supervised])
    predicting = logits[-len(answer) - 1 : -1]
    return float(functional.cross_entropy(predicting, answer, reduction="sum")), len(answer)


def test_information_is_the_log_of_a_ratio_of_probabilities() -> None:
    own = np.log([0.8, 0.2, 0.3])
    apart = np.log([[0.1, 0.1, 0.3], [0.3, 0.3, 0.3]])
    assert information(own, apart) == pytest.approx(np.log([4, 1, 1]))
    assert information(own - 2000, apart - 2000) == pytest.approx(np.log([4, 1, 1]))


def test_agreement_is_what_its_own_picture_is_worth(compose_tiny: Callable[..., Any]) -> None:
    model, processor = compose_tiny("linear")
    collator = tiny.collator(model, processor)
    pictures = [tiny.image(seed) for seed in range(2)]
    records = [tiny.record([pictures[n], "what?"], ("one", "two")[n], row=n) for n in range(2)]
    records.append(tiny.record("what?", "one", row=2))
    samples = [tokenise(record, processor.tokenizer) for record in records]
    scorer = Scorer(model, collator, processor.tokenizer, torch.device("cpu"), True)
    found = computed("agreement[others=1]", samples, Place(lambda folder: scorer))
    for place, other in ((0, 1), (1, 0)):  # of two, the other's picture is the only other one
        own, count = by_hand(model, collator, samples[place], (pictures[place],))
        apart, _ = by_hand(model, collator, samples[place], (pictures[other],))
        assert found[place] == pytest.approx((apart - own) / count, abs=1e-5)
    assert np.isnan(found[2])
    with pytest.raises(UsageError, match="no record has a medium"):
        computed("agreement", samples[2:], Place(lambda folder: scorer))
    losses = computed("loss", samples, Place(lambda folder: scorer))
    own, count = by_hand(model, collator, samples[0], (pictures[0],))
    assert losses[0] == pytest.approx(own / count, abs=1e-5)
