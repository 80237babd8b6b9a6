"""``modalign data mix``: weights, merged experts, the rank correlation, from sources to report, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

import tiny
from modalign.cli import main
from modalign.data.supervision import Sample
from modalign.merging.registry import method_named
from modalign.mixtures.experts import merged, replaced, weights_of
from modalign.mixtures.weights import lattice, mixed, named, spread
from modalign.models.saved import open_composed
from modalign.numbers.ranking import rank_correlation
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.tuning import Tuning


@given(st.integers(2, 4), st.integers(2, 6))
def test_the_lattice_is_every_mixture_once(sources: int, parts: int) -> None:
    found = lattice([f"s{n}" for n in range(sources)], parts)
    assert len(found) == comb(sources + parts - 1, parts)
    assert len({named(weights) for weights in found}) == len(found)
    assert all(sum(weights.values()) == pytest.approx(1) for weights in found)


def sample(name: str) -> Sample:
    return Sample(tiny.record("a", name), np.array([1, 2]), np.array([False, True]))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=4), st.integers(1, 60))
def test_samples_follow_the_weights(weights: list[float], count: int) -> None:
    if not sum(weights) > 1e-3:
        weights = [1.0] * len(weights)
    shares = [weight / sum(weights) for weight in weights]
    sources = {str(n): [sample(str(n)) for _ in range(3)] for n in range(len(shares))}
    given_ = {str(n): share for n, share in enumerate(shares)}
    drawn = mixed(sources, given_, count, (0, 0))
    assert len(drawn) == count
    for name, own in sources.items():
        times = [sum(each is one for each in drawn) for one in own]
        assert abs(sum(times) - given_[name] * count) < 1
        assert max(times) - min(times) <= 1


def test_checked_mixtures_are_spread_over_the_ranking() -> None:
    ranked = list("abcdefghi")
    assert spread(ranked, ["a", "e"], 4) == ["a", "e", "b", "i"]
    assert spread(ranked, ["a", "e"], 3) == ["a", "e", "i"]
    assert spread(ranked, ["a", "e"], 1) == ["a"]
    assert spread(["a"], ["a"], 6) == ["a"]


def test_rank_correlation_is_spearmans_with_its_exact_chance() -> None:
    rng = np.random.default_rng(0)
    for n in (4, 6, 12):
        a, b = rng.normal(size=n), rng.normal(size=n)
        found = rank_correlation(a, b)
        assert found is not None
        assert found.value == pytest.approx(spearmanr(a, b).statistic)
        assert found.low < found.value < found.high
    perfect = rank_correlation([1, 2, 3, 4, 5, 6], [2, 4, 6, 8, 10, 12])
    assert perfect is not None
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.p == pytest.approx(1 / 720)
    assert 0.3 < perfect.low < 0.8  # six items say little
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None


def tuned(folder: Path, mode: Any) -> Tuning:
    settings = TrainSettings(
        llm=mode,
        learning_rates=LearningRates(connector=0, llm=1e-2, encoder=0),
        batch_size=4,
        lora_rank=2,
        device="cpu",
    )
    opened = open_composed(folder)
    ids = np.arange(2, 10)
    samples = [Sample(tiny.record("a", "b", row=n), ids, np.ones(8, dtype=bool)) for n in range(4)]
    return Tuning(opened, [Stage()], settings, samples)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_experts_merge_by_their_products(llm_folder: Callable[..., Path], mode: str) -> None:
    tuning = tuned(llm_folder(), mode)
    origin = weights_of(tuning)
    plain = {name: p.detach().clone() for name, p in tuning.model.named_parameters()}
    experts, deltas = {}, {}
    for number, source in enumerate(("one", "two")):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in tuning.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        experts[source] = weights_of(tuning)
        parameters = dict(tuning.model.named_parameters())
        deltas[source] = {}
        for name in origin:
            if mode == "lora":  # scaled by alpha / rank = 16
                path = name.removesuffix(".base_layer.weight")
                up = parameters[f"{path}.lora_B.default.weight"].detach()
                deltas[source][name] = (
                    16 * up @ parameters[f"{path}.lora_A.default.weight"].detach()
                )
            else:
                deltas[source][name] = parameters[name].detach() - plain[name]
    assert origin
    made = merged(origin, experts, {"one": 0.25, "two": 0.75}, method_named("linear"), {}, 0)
    for name, value in made.items():
        by_hand = plain[name] + 0.25 * deltas["one"][name] + 0.75 * deltas["two"][name]
        assert tiny.largest_difference(value, by_hand) < 1e-5
    corner = merged(origin, experts, {"one": 1.0, "two": 0.0}, method_named("linear"), {}, 0)
    assert all(tiny.largest_difference(corner[n], experts["one"][n]) < 1e-6 for n in corner)

    before = {name: p.detach().clone() for name, p in tuning.model.named_parameters()}
    with replaced(tuning, made):
        inside = weights_of(tuning)
        assert all(inside[name].equal(made[name]) for name in made)
    after = dict(tuning.model.named_parameters())
    assert all(after[name].equal(value) for name, value in before.items())


WORDS = {"a": ["one two", "two one"], "b": ["seven eight", "eight seven"]}


@pytest.fixture(scope="session")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of 24 questions each, 8 to aim at; and a file of both."""
    folder = tmp_path_factory.mktemp("domains")
    every = []
    for name, answers in WORDS.items():
        rows = [
            {"question": f"{name} {n} what?", "answer": answers[n % 2], "id": f"{name}{n}"}
            for n in range(24)
        ]
        tiny.write_jsonl(folder / f"{name}.jsonl", rows)
        every += rows[:12]
    tiny.write_jsonl(folder / "both.jsonl", every)
    goal = [{"question": f"a {n} so?", "answer": WORDS["a"][n % 2]} for n in range(8)]
    tiny.write_jsonl(folder / "goal.jsonl", goal)
    return folder


@pytest.fixture
def config(
    domains: Path, tmp_path: Path, llm_folder: Callable[..., Path], small_cache: Path
) -> Callable[..., str]:
    """Changed fields -> the file of a mix of seconds."""

    def make(**changes: Any) -> str:
        fields: dict[str, Any] = {
            "model": str(llm_folder()),
            "sources": {name: str(domains / f"{name}.jsonl") for name in WORDS},
            "budget": "8samples",
            "seeds": 1,
            "parts_of_one": 6,
            "checked": 5,
            "training": {"llm": "full", "batch_size": 4, "device": "cpu"},
        }
        file = tmp_path / "mix.yaml"
        file.write_text(yaml.safe_dump(fields | changes))
        return str(file)

    return make


@pytest.fixture
def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Words -> exit code and all that the command line printed."""

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["modalign", "data", "mix", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out + err

    return call


def test_mixing_from_sources_to_report(
    config: Callable[..., str],
    said: Callable[..., tuple[int, str]],
    domains: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    file = config(data={"val": str(domains / "goal.jsonl"), "eval": str(domains / "goal.jsonl")})
    code, text = said(file, "--out", str(out))
    assert code == 0, text
    report = json.loads((out / "report.json").read_text())
    mixtures = {each["name"]: each for each in report["mixtures"]}
    assert set(mixtures) == {named(w) for w in lattice(["a", "b"], 6)}
    proxies = [each["proxy"]["objective"]["value"] for each in report["mixtures"]]
    assert proxies == sorted(proxies)
    assert report["mixtures"][0]["name"] == report["chosen"]
    for name in ("a 100", "b 100"):  # one expert alone is what it was trained to be
        alone = mixtures[name]
        assert alone["proxy"]["val"]["value"] == pytest.approx(
            alone["trained"]["val"]["value"], abs=1e-5
        )
    trained = [each for each in report["mixtures"] if each["trained"]]
    assert len(trained) == 7
    assert report["agreement"]["objective"]["n"] == 5
    expected = spearmanr(
        [e["proxy"]["val"]["value"] for e in trained if len(e["name"].split(",")) == 2],
        [e["trained"]["val"]["value"] for e in trained if len(e["name"].split(",")) == 2],
    ).statistic
    assert report["agreement"]["val"]["value"] == pytest.approx(expected)
    assert (report["trainings"], report["without"]) == (7, 7)
    assert "Spearman" in (out / "report.md").read_text()
    assert (out / "report.html").stat().st_size

    monkeypatch.setattr(Tuning, "run", lambda *_: pytest.fail("nothing is trained again"))
    code, text = said(file, "--out", str(out), "--resume", "--json")
    assert code == 0, text
    assert json.loads(text)["mixtures"] == report["mixtures"]


def test_a_plan_trains_nothing(
    config: Callable[..., str], said: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, text = said(config(), "--dry-run", "--json", "--out", str(out))
    assert code == 0, text
    plan = json.loads(text)
    assert plan["mixtures ranked by merging them"] == 7
    assert plan["trainings, at most"] == 2 + 5
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"sources": {"a": "a.jsonl"}}, 2, "a mixture needs two or more"),
        ({"sources": {"a": "a.jsonl", "again": "a.jsonl"}}, 3, "a and again hold the same records"),
        ({"sources": {"a": "a.jsonl", "val": "b.jsonl"}}, 2, "'val' means something else"),
        ({"merge": "liner"}, 2, "did you mean linear"),
        ({"mixtures": [{"c": 1.0}]}, 2, "there is no source 'c'"),
        ({"mixtures": [{"a": 0.0}]}, 2, "not all 0"),
    ],
)
def test_bad_input_is_one_sentence(
    config: Callable[..., str],
    said: Callable[..., tuple[int, str]],
    domains: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    code: int,
    words: str,
) -> None:
    if "sources" in changes:
        changes = {"sources": {n: str(domains / f) for n, f in changes["sources"].items()}}
    found, text = said(config(**changes), "--out", str(tmp_path / "run"))
    assert found == code, text
    assert words in " ".join(text.split())


def test_sources_need_names(said: Callable[..., tuple[int, str]]) -> None:
    code, text = said("a.jsonl", "b.jsonl", "--model", "m")
    assert code == 2
    assert "NAME=FILE" in text
    code, text = said("a=a.jsonl", "b=b.jsonl")
    assert code == 2
    assert "--model names a saved model" in text
