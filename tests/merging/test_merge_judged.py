"""``modalign merge`` with data: what is chosen by what, learnt coefficients, soups, the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from modalign.data.records import Message, Record, Source
from modalign.data.supervision import Sample
from modalign.merging.bench import Bench
from modalign.merging.comparing import Model, compare
from modalign.merging.config import MergeConfig
from modalign.merging.judging import Domain, Judged
from modalign.merging.learned import _Maps
from modalign.merging.planning import Merge
from modalign.merging.run import merge_models
from modalign.models.saved import open_composed
from modalign.patches.apply import applied, view
from modalign.patches.model_folders import apply_to_folder
from modalign.patches.storage import load_patch

Run = Callable[..., tuple[int, str, str]]
COUNTING = "what is one two three four five six seven eight?"
NAMING = "red circle, blue square, green triangle."


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the clean process: test_merge_folders has it."""
    monkeypatch.setattr("modalign.merging.run.CleanProcess", tiny.NoProcess)


@pytest.fixture(scope="module")
def experts(llm_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base`` and two models that were trained on a sentence each, ``a`` and ``b``, and texts."""
    place = tmp_path_factory.mktemp("experts")
    shutil.copytree(llm_folder("llama"), place / "base")
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    for name, text in (("a", COUNTING), ("b", NAMING)):
        model = AutoModelForCausalLM.from_pretrained(place / "base")
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(15):
            model(input_ids=ids, labels=ids).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
        for part, begin in (("val", "one "), ("test", "two ")):
            texts = [f"{begin * number}{text}" for number in range(1, 5)]
            (place / f"{name}-{part}.txt").write_text("\n\n".join(texts))
    return place


def config(place: Path, **fields: Any) -> MergeConfig:
    return MergeConfig(parents={name: str(place / name) for name in "ab"}, **fields)


def files(place: Path, part: str, names: str = "ab") -> dict[str, str]:
    return {name: str(place / f"{name}-{part}.txt") for name in names}


def held(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


# ---------------------------------------------------------------------- choosing and judging


def test_a_search_sees_validation_data_only(experts: Path, tmp_path: Path) -> None:
    """Validation is of one domain, evaluation of the other: the choice must be the validation's."""
    for name, best in (("a", 0.1), ("b", 0.9)):
        other = "b" if name == "a" else "a"
        found = merge_models(
            config(
                experts,
                search="weight=0.1,0.5,0.9",
                val=files(experts, "val", name),
                evaluation=files(experts, "test", other),
            ),
            tmp_path / name,
        )
        assert found.chosen == f"linear weight {best:g}"
        tried = [row for row in found.rows if row.kind == "merge"]
        assert [row.tried for row in tried] == [0.1, 0.5, 0.9]
        assert min(tried, key=lambda row: row.validation or 0).chosen
        assert not min(tried, key=lambda row: row.losses[other].value).chosen
        assert found.plan.weights == f"a {1 - best:g}, b {best:g}"
        wanted = (1 - best) * held(experts / "a")["model.norm.weight"].double()
        wanted += best * held(experts / "b")["model.norm.weight"].double()
        saved = held(tmp_path / name / "model")["model.norm.weight"].double()
        torch.testing.assert_close(saved, wanted, rtol=0, atol=1e-6)


def test_the_report_has_every_row_and_losses_are_the_models_own(
    experts: Path, cli: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    data = [word for n, f in files(experts, "test").items() for word in ("--eval", f"{n}={f}")]
    train = [word for n, f in files(experts, "val").items() for word in ("--train", f"{n}={f}")]
    given = [
        "merge",
        experts / "a",
        experts / "b",
        "--base",
        experts / "base",
        "-o",
        out,
        *data,
        *train,
    ]
    code, printed, said = cli(*given, "--joint", "8samples", "--json")
    assert code == 0, said
    found = json.loads(printed)
    names = [row["name"] for row in found["rows"]]
    assert names == ["base", "a", "b", "linear", "joint training"]
    rows = {row["name"]: row for row in found["rows"]}
    for name, folder in (
        ("base", experts / "base"),
        ("b", experts / "b"),
        ("linear", out / "model"),
    ):
        for domain in "ab":
            loss = rows[name]["losses"][domain]
            assert loss["value"] == pytest.approx(
                by_hand(folder, experts / f"{domain}-test.txt"), rel=1e-4
            )
            assert loss["low"] <= loss["value"] <= loss["high"]
        whole = np.mean([rows[name]["losses"][d]["value"] for d in "ab"])
        assert rows[name]["mean"]["value"] == pytest.approx(whole)
    assert [each["domain"] for each in found["differences"]] == ["a", "b", "mean"]
    against = {
        d["second"]: d["difference"]["value"] for d in found["differences"][2]["differences"]
    }
    assert set(against) == {"base", "a", "b", "joint training"}
    gap = rows["base"]["mean"]["value"] - rows["linear"]["mean"]["value"]
    assert against["base"] == pytest.approx(gap)
    before = (out / "judged" / "joint.json").stat().st_mtime_ns
    code, _, said = cli(*given, "--joint", "8samples", "--resume")
    assert code == 0, said
    assert (out / "judged" / "joint.json").stat().st_mtime_ns == before  # finished work is kept


def by_hand(folder: Path, text: Path) -> float:
    """Nats per token of a text file's documents."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loss, count = 0.0, 0
    for document in text.read_text().split("\n\n"):
        ids = torch.tensor(tokenizer(document)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        loss += float(functional.cross_entropy(logits, ids[1:], reduction="sum"))
        count += len(ids) - 1
    return loss / count


def test_the_mean_over_domains_weighs_them_alike() -> None:
    rng = np.random.default_rng(0)
    judged = {}
    for name, n in (("x", 5), ("y", 40)):
        tokens = rng.integers(1, 9, n)
        judged[name] = Judged(
            loss=(rng.random(n) * tokens).tolist(), tokens=tokens.tolist(), correct=[False] * n
        )

    def sample(number: int) -> Sample:
        record = Record(str(number), (Message("assistant", ("x",)),), Source("x", number))
        return Sample(record, np.zeros(2, dtype=np.int64), np.ones(2, dtype=bool))

    domains = {
        name: Domain(name, [sample(i) for i in range(len(each.loss))], True)
        for name, each in judged.items()
    }
    rows, _ = compare([Model("m", "merge", judged)], domains, "m")
    assert rows[0].mean is not None
    wanted = np.mean([sum(each.loss) / sum(each.tokens) for each in judged.values()])
    assert rows[0].mean.value == pytest.approx(wanted)


def test_what_chooses_must_not_judge(experts: Path, cli: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = ("--val", experts / "a-val.txt", "--eval", experts / "a-val.txt")
    given = ("merge", experts / "a", experts / "b", "-o", out)
    code, _, said = cli(*given, "--search", "weight=0.2,0.8", *both)
    assert code == 3
    assert "what chooses must not judge" in said
    assert not out.exists()
    for words, more in {
        "--val NAME=FILE": ("--search", "weight=0.2,0.8"),
        "two or more different numbers": ("--search", "weight=0.2", *both[:2]),
        "there is no file": ("--eval", "nowhere.txt"),
        "--train NAME=FILE": ("--joint", "8samples"),
    }.items():
        code, _, said = cli(*given, *more)
        assert code == 2, said
        assert words in " ".join(said.split()), said


# ---------------------------------------------------------------------- learnt coefficients


def test_the_gradient_by_coefficients_is_autograds(experts: Path, tmp_path: Path) -> None:
    merge = Merge(config(experts, weight=["0.3"]))
    opened = open_composed(experts / "a")
    model = opened.model.float().eval()
    maps = _Maps(merge.alignment, merge.recipe, model)
    assert len(maps.identities) == 4 * 7  # q, k, v, o, gate, up, down of four layers
    assert torch.equal(maps.prior, torch.full((28, 1), 0.3, dtype=torch.float64))
    ids = torch.tensor([opened.tokenizer(COUNTING)["input_ids"]])
    for parameter in maps.parameters:
        parameter.requires_grad_(True)
    maps.put(maps.prior)

    def loss(values: dict[str, Tensor]) -> Tensor:
        call = torch.func.functional_call(model.language_model, values, (ids,))
        return functional.cross_entropy(call.logits[0, :-1], ids[0, 1:])

    loss({}).backward()
    found = maps.gradient()
    by_name = {id(p): name for name, p in model.language_model.named_parameters()}
    weights = maps.prior.float().clone().requires_grad_(True)
    values = {
        by_name[id(parameter)]: maps.first[i] + weights[i, 0] * maps.others[i][0]
        for i, parameter in enumerate(maps.parameters)
    }
    (wanted,) = torch.autograd.grad(loss(values), weights)
    torch.testing.assert_close(found, wanted.double(), rtol=1e-3, atol=1e-6)


def test_learned_goes_where_the_meta_set_is_and_a_pull_holds_it_back(
    experts: Path, tmp_path: Path
) -> None:
    shares = {}
    for pull in (0.0, 1000.0):
        learning = {"steps": 12, "rate": 0.05, "pull": pull}
        out = tmp_path / str(pull)
        found = merge_models(
            config(experts, method="learned", val=files(experts, "val", "b"), learning=learning),
            out,
        )
        own = {name: w for name, w in found.coefficients.items() if name != "*"}
        assert len(own) == 28
        assert all(sum(weights.values()) == pytest.approx(1) for weights in own.values())
        shares[pull] = np.mean([weights["b"] for weights in own.values()])
        losses = json.loads((out / "learned.json").read_text())["losses"]
        if not pull:
            assert np.mean(losses[-3:]) < np.mean(losses[:3])
        name = "layers.2.mlp.up_proj.weight"
        a, b = (held(experts / each)[f"model.{name}"].double() for each in "ab")
        wanted = own[name]["a"] * a + own[name]["b"] * b
        torch.testing.assert_close(
            held(out / "model")[f"model.{name}"].double(), wanted, rtol=0, atol=1e-6
        )
        assert [row.name for row in found.rows] == ["linear, given weights", "learned"]
    assert shares[0.0] > 0.55
    assert abs(shares[1000.0] - 0.5) < abs(shares[0.0] - 0.5) / 2


# ---------------------------------------------------------------------- soups


@pytest.mark.parametrize(
    ("method", "terms"), [("linear", 1), ("task_arithmetic", 2), ("ties", 1), ("dare_linear", 1)]
)
def test_a_soup_comes_out_bit_for_bit(
    method: str, terms: int, experts: Path, tmp_path: Path
) -> None:
    base = None if method == "linear" else str(experts / "base")
    fields: dict[str, Any] = {"method": method, "base": base, "weight": ["0.4,0.5"]}
    whole = merge_models(config(experts, **fields), tmp_path / "folder")
    found = merge_models(config(experts, form="patch", **fields), tmp_path / "patch")
    patch = load_patch(found.model)
    target = experts / ("a" if base is None else "base")
    apply_to_folder(target, [patch], tmp_path / "applied")
    wanted, got = held(Path(whole.model)), held(tmp_path / "applied")
    assert all(torch.equal(value, wanted[name]) for name, value in got.items())
    header = patch.header
    assert header.kind == "soup"
    hashes = {row.name: row.sha256 for row in whole.plan.parents}
    assert {p.name: (p.sha256, p.weight) for p in header.parents} == {
        "a": (hashes["a"], 0.4), "b": (hashes["b"], 0.5),
    }  # fmt: skip
    change = patch.changes["model.layers.0.mlp.up_proj.weight"]
    assert len(change.layout["terms"]) == terms
    lazily = view(AutoModelForCausalLM.from_pretrained(target), patch)
    ids = torch.tensor([[5, 9, 7, 11, 6, 8]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(whole.model)(ids).logits
        torch.testing.assert_close(lazily(ids).logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "tied"), [("gpt2", False), ("llama", True)])
def test_soups_of_transposed_and_of_tied_weights(
    family: str, tied: bool, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = llm_folder(family, tied)
    for number, name in enumerate("ab"):
        shutil.copytree(source, tmp_path / name)
        draw = torch.Generator().manual_seed(number)
        moved = {n: v + 0.1 * torch.randn(v.shape, generator=draw) for n, v in held(source).items()}
        save_file(moved, tmp_path / name / "model.safetensors", {"format": "pt"})
    whole = merge_models(config(tmp_path, weight=["0.3"]), tmp_path / "folder")
    found = merge_models(config(tmp_path, weight=["0.3"], form="patch"), tmp_path / "patch")
    patch = load_patch(found.model)
    apply_to_folder(tmp_path / "a", [patch], tmp_path / "applied")
    wanted = held(Path(whole.model))
    assert all(torch.equal(v, wanted[n]) for n, v in held(tmp_path / "applied").items())
    assert any(base.tied for base in patch.header.base.values()) == tied
    assert any(base.transposed for base in patch.header.base.values()) == (family == "gpt2")
    with applied(AutoModelForCausalLM.from_pretrained(tmp_path / "a"), patch):
        pass  # fits the model in memory, too


def test_a_soup_answers_by_ask_and_is_listed(experts: Path, cli: Run, tmp_path: Path) -> None:
    merge_models(config(experts, form="patch"), tmp_path / "out")
    patch = tmp_path / "out" / "soup.safetensors"
    code, printed, said = cli("patch", "inspect", patch, "--json")
    assert code == 0, said
    assert '"kind": "soup"' in printed
    code, _, said = cli("ask", experts / "a", "what is one?", "--patch", patch)
    assert code == 0, said
    code, _, said = cli("ask", experts / "b", "what is one?", "--patch", patch)
    assert code == 3
    assert "made for another model" in said


def test_bench_reads_no_data_where_none_is_given(experts: Path, tmp_path: Path) -> None:
    bench = Bench(Merge(config(experts)), tmp_path, lambda *told: None)
    assert not bench.validation
    assert bench.judge_all("linear", bench.merge.recipe) == []
