"""The calibration of bench/calibration.py, on a few simulated trainings instead of 120 real ones."""

from __future__ import annotations

import numpy as np
import pytest
from bench.calibration import (
    KINDS,
    Found,
    Questions,
    Trained,
    calibrate,
    tables,
    world,
    worlds_table,
)

from modalign.comparison.recommendation import Cost

METHODS, TRAININGS, QUESTIONS = 6, 8, 240


@pytest.fixture(scope="module")
def trained() -> Trained:
    """Methods of different skill whose spreads between trainings lie eightfold apart."""
    rng = np.random.default_rng(0)
    skill = np.linspace(0, 1.5, METHODS)
    luck = np.geomspace(0.05, 0.4, METHODS)[:, None] * rng.normal(size=(METHODS, TRAININGS))

    def asked() -> Questions:
        hard = rng.normal(0, 0.8, QUESTIONS // 4).repeat(4)
        able = skill[:, None, None] + luck[:, :, None] + hard
        right = rng.random(able.shape) < 1 / (1 + np.exp(-able))
        answers = {f"m{place}": own.astype(float) for place, own in enumerate(right)}
        return Questions(answers, [str(place // 4) for place in range(QUESTIONS)])

    costs = {f"m{place}": Cost(1000, place + 1, 1e9, 1e6 * (place + 1)) for place in range(METHODS)}
    return Trained(asked(), asked(), costs)


@pytest.fixture(scope="module")
def found(trained: Trained) -> Found:
    return calibrate(trained, 2, draws=24)


def test_intervals_hold_the_trainings_that_they_did_not_see(found: Found) -> None:
    covered = [found.covered(name) for name in found.misses]
    assert 0.9 <= np.mean(covered) <= 1
    assert min(covered) >= 0.8
    allowing = [found.allowing(name) for name in found.misses]
    assert all(more >= plain for more, plain in zip(allowing, covered, strict=True))
    assert min(allowing) >= 0.85


def test_hardly_a_pair_called_different_stands_the_other_way_round(found: Found) -> None:
    assert found.different[0] > 24  # it does call pairs different
    assert found.reversed <= 0.025


def test_confidence_is_about_how_often_the_choice_is_made_again(found: Found) -> None:
    stated, again = np.array(found.picks, dtype=float).T
    assert stated.mean() == pytest.approx(again.mean(), abs=0.25)


def test_the_tables_have_every_method_and_every_part(trained: Trained, found: Found) -> None:
    text = tables(trained, {2: found})
    assert all(f"| m{place} |" in text for place in range(METHODS))
    assert "8 trainings of each of 6 methods; 24 comparisons" in text
    assert f"of {found.different[0]:,} pairs called different" in text
    assert sum(number for *_, number in found.bins()) == 24


def test_comparisons_of_several_worlds_are_counted_together(found: Found) -> None:
    both = Found()
    both.add(found)
    both.add(found)
    assert both.draws == 2 * found.draws
    assert [both.covered(name) for name in both.misses] == [found.covered(n) for n in found.misses]
    assert both.reversed == found.reversed
    text = worlds_table({("tenfold", 2): both})
    assert f"{2 * found.different[0]:,}" in text
    assert "48 comparisons a row" in text


@pytest.mark.parametrize("kind", KINDS)
def test_worlds_have_the_spreads_they_say(kind: str) -> None:
    given = world(kind, np.random.default_rng(0))
    accuracies = [own.mean(axis=1) for own in given.evaluation.answers.values()]
    spreads = [own.std() / (own.mean() * (1 - own.mean())) for own in accuracies]
    least, widest = np.mean(spreads[:4]), np.mean(spreads[-4:])
    alike, apart = (0.7, 1.4), (2.5, 6.0)  # 5.4 less luck on single questions
    low, high = alike if kind == "alike" else apart
    assert low < widest / least < high
    assert len(given.costs) == len(accuracies) == 12


def test_redrawn_images_stay_whole(trained: Trained) -> None:
    rng = np.random.default_rng(1)
    chosen = trained.some(rng, 2, range(TRAININGS))
    answers, groups = trained.evaluation.redrawn(rng, chosen)
    assert answers["m0"].shape == (2, QUESTIONS)
    sizes = np.unique(groups, return_counts=True)[1]
    assert (sizes == 4).all()
    assert len(sizes) == QUESTIONS // 4  # the same image drawn twice counts as two
