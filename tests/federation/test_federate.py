"""``modalign federate`` from configuration to report: resumed, counted, judged, and with bad input."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import tiny
from modalign.errors import DataError, ModalignError, UsageError
from modalign.federation.config import FederateConfig
from modalign.federation.pools import pool_of
from modalign.federation.run import federate
from modalign.federation.workplace import Task, Workplace
from modalign.models.export import save_model
from modalign.models.saved import open_composed

CELL = "aligned__fedavg__plain__seed-0"


def file_bytes(tensors: dict[str, Tensor]) -> int:
    """Return the size of a safetensors file of these tensors, from their shapes alone.

    Eight bytes of length, the JSON header padded to a multiple of eight, and the values (safetensors' format).
    """
    kinds = {
        torch.float32: "F32",
        torch.bfloat16: "BF16",
        torch.float16: "F16",
        torch.float64: "F64",
    }
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, place = {}, 0
    for name, tensor in ordered:
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": kinds[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + text + (-text % 8) + place


@pytest.fixture(scope="session")
def owners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 questions about pictures of three wards, and 8 to judge by."""
    folder = tmp_path_factory.mktemp("owners")
    for seed in range(4):
        (folder / f"{seed}.png").write_bytes(tiny.png_bytes(seed))
    rows = [
        {
            "id": f"r{n}",
            "image": f"{n % 4}.png",
            "question": "what is one?",
            "answer": ("yes", "no")[n % 2],
            "skill": "ab"[n % 2],
            "ward": ("north", "south", "west")[n % 3],
            "group": f"g{n}",
        }
        for n in range(56)
    ]
    tiny.write_jsonl(folder / "train.jsonl", rows[:48])
    tiny.write_jsonl(folder / "eval.jsonl", rows[48:])
    return folder


@pytest.fixture
def config(
    owners: Path,
    llm_folder: Callable[..., Path],
    tower_folder: Callable[..., Path],
    small_cache: Path,
) -> Callable[..., FederateConfig]:
    """Changed fields -> a federation of seconds."""

    def make(**changes: Any) -> FederateConfig:
        values: dict[str, Any] = {
            "parts": {
                "llm": str(llm_folder()),
                "encoder": {"image": str(tower_folder())},
                "feature_layer": -1,
            },
            "data": {"train": str(owners / "train.jsonl"), "eval": str(owners / "eval.jsonl")},
            "budget": "8samples",
            "rounds": 2,
            "seeds": 1,
            "clients": {"by": "column:ward", "held_out": 0.2},
            "training": {
                "batch_size": 4,
                "lora_rank": 4,
                "device": "cpu",
                "learning_rates": {"connector": 1e-2, "llm": 1e-2, "encoder": 0},
            },
        }
        for key, value in changes.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return FederateConfig.model_validate(values)

    return make


def last(out: Path, cell: str = CELL) -> dict[str, Any]:
    """The tensors after the last round."""
    return load_file(max((out / "cells" / cell).glob("round-*")) / "tensors.safetensors")


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_a_grid_is_run_reported_and_saved(config: Any, tmp_path: Path) -> None:
    chosen = config(
        scenarios=["aligned", "single:1"],
        rules=["fedavg", "median"],
        strategies=["plain", "prompt+proximal:adaptive"],
        train="both",
        clients={"sampled": 2, "ranks": [4, 2]},
    )
    found = federate(chosen, tmp_path / "run")
    for form in ("html", "md", "json", "schema.json"):
        assert (tmp_path / "run" / f"report.{form}").stat().st_size
    rows = {(r.scenario, r.rule, r.strategy) for r in found.rows}
    assert len(rows) == 2 * (3 * 2 + 2 * 2)
    assert [c.name for c in found.clients] == ["north", "south", "west"]
    federated = [row for row in found.rows if row.own]
    assert {row.worst for row in federated} <= {"north", "south", "west"}
    assert all(
        own.together.value >= row.own[0].together.value for row in federated for own in row.own
    )
    pairs = found.pairs[0].differences
    assert {(p.first, p.second) for p in pairs} == {
        (f"{rule}{more}", reference)
        for rule in ("fedavg", "median")
        for more in ("", ", prompt+proximal:adaptive")
        for reference in ("local-only", "centralised")
    }
    assert "No secure aggregation" in (tmp_path / "run" / "report.md").read_text()
    assert open_composed(tmp_path / "run" / "model").encoders
    again = federate(chosen, tmp_path / "run", resume=True)
    assert [r.accuracy for r in again.rows] == [r.accuracy for r in found.rows]


@pytest.mark.parametrize("way", ["into_base", "stack"])
def test_bytes_are_those_of_the_files(way: str, config: Any, tmp_path: Path) -> None:
    found = federate(config(train="lora", lora=way), tmp_path / "run")
    (rounds,) = found.rounds.values()
    cell = tmp_path / "run" / "cells" / CELL
    sent = list((cell / "answers").glob("*.safetensors"))
    assert len(sent) == 3
    sizes = [file.stat().st_size for file in sent]
    assert rounds[-1].up == sum(sizes)
    assert sizes == [file_bytes(load_file(file)) for file in sent]
    assert (
        rounds[0].down == 3 * file_bytes(load_file(cell / "answers" / sent[0].name))
        or way == "stack"
    )
    down = cell / "round-0001" / "down.safetensors"
    assert down.stat().st_size == file_bytes(load_file(down))
    assert rounds[-1].lora_error <= 1e-6


@pytest.mark.parametrize(("way", "kill_at"), [("svd", 2), ("stack", 5)])
def test_a_killed_run_goes_on_bit_for_bit(
    way: str, kill_at: int, config: Any, tmp_path: Path
) -> None:
    chosen = config(train="both", lora=way, rules=["fedadam"] if way != "stack" else ["fedavg"])
    cell = CELL.replace("fedavg", chosen.rules[0])
    whole = federate(chosen, tmp_path / "whole")
    pid = os.fork()
    if pid == 0:
        real, calls = Workplace.train, iter(range(1, 100))

        def train(self: Workplace, task: Task) -> Any:
            if "__fed" in str(task.folder) and next(calls) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, task)

        Workplace.train = train  # type: ignore[method-assign]
        federate(chosen, tmp_path / "cut")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    resumed = federate(chosen, tmp_path / "cut", resume=True)
    assert_equal(last(tmp_path / "whole", cell), last(tmp_path / "cut", cell))
    assert [r.accuracy for r in resumed.rows] == [r.accuracy for r in whole.rows]
    assert resumed.rounds == whole.rounds


def dying(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = Workplace.train

    def train(self: Workplace, task: Task) -> Any:
        if task.client in names and "__fed" in str(task.folder):
            raise RuntimeError("out of memory")
        return real(self, task)

    monkeypatch.setattr(Workplace, "train", train)


def test_a_round_goes_on_without_half_of_its_clients(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(monkeypatch, "north")
    found = federate(config(), tmp_path / "run")
    row = next(row for row in found.rows if row.rule == "fedavg")
    assert row.lost == 2  # once in either round
    (rounds,) = found.rounds.values()
    assert rounds[0].lost == {"north": "RuntimeError: out of memory"}
    assert "did not answer" in (tmp_path / "run" / "report.md").read_text()


def test_too_few_answers_end_the_run_and_resume_asks_again(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        dying(patch, "north", "west")
        with pytest.raises(ModalignError, match=r"only 1 of 3 clients answered.*out of memory"):
            federate(config(), tmp_path / "run")
    federate(config(), tmp_path / "run", resume=True)
    federate(config(), tmp_path / "whole")
    assert_equal(last(tmp_path / "run"), last(tmp_path / "whole"))


def test_one_client_alone(config: Any, owners: Path, tmp_path: Path) -> None:
    found = federate(config(clients={"by": "shards:1", "count": 1}), tmp_path / "run")
    assert len(found.clients) == 1
    assert found.rows[-1].worst == "client-0"


def test_privacy_without_noise_is_the_unweighted_mean(config: Any, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    rules = ["fedavg[weighted=false]"]
    federate(config(rules=rules), tmp_path / "plain")
    private = config(rules=rules, privacy={"clip": 1e9, "noise": [0, 4], "delta": 1e-3})
    found = federate(private, tmp_path / "private")
    cell = "aligned__fedavg-weighted=false-__plain__{}seed-0"
    first = last(tmp_path / "plain", cell.format(""))
    second = last(tmp_path / "private", cell.format("noise-0__"))
    assert all((first[n] - second[n]).abs().max() < 1e-6 for n in first)
    epsilons = [row.epsilon for row in found.rows if row.noise is not None]
    assert epsilons[0] is None  # no guarantee
    assert 0 < (epsilons[1] or 0) < 5


def test_a_scenario_that_leaves_a_client_nothing_is_refused_before_training(
    config: Any, owners: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (owners / "train.jsonl").read_text().splitlines()]
    texts = [{**row, "image": None} if row["ward"] == "west" else row for row in rows]
    data = tiny.write_jsonl(owners / "texts.jsonl", texts)
    with pytest.raises(DataError, match=r"client 'west' has no usable records.*single:3"):
        federate(config(data={"train": str(data)}, scenarios=["single:3"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ray_trains_to_the_same_numbers(config: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    federate(config(train="both", rounds=1), tmp_path / "here")
    federate(config(train="both", rounds=1), tmp_path / "ray", ray="local")
    assert_equal(last(tmp_path / "here"), last(tmp_path / "ray"))


def test_an_address_without_ray_behind_it_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"--ray 127\.0\.0\.1:1"), pool_of("127.0.0.1:1"):
        pass


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rules": ["fedavgg"]}, "did you mean fedavg"),
        ({"budget": "10s"}, "give samples or flops"),
        ({"clients": {"by": "dirichlet"}}, "dirichlet:ALPHA"),
        ({"clients": {"ranks": [64]}}, "none may exceed"),
    ],
)
def test_what_cannot_be_run_is_usage(
    changes: dict[str, Any], said: str, config: Any, cli: Any, tmp_path: Path
) -> None:
    values = config().model_dump(mode="json")
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump(values))
    code, _, err = cli("federate", path, "--out", tmp_path / "run")
    assert code == 2
    assert said in err


def test_the_command_line_prints_json(config: Any, cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump(config(rounds=1).model_dump(mode="json")))
    code, out, _ = cli("federate", path, "--out", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out)["rows"][-1]["rule"] == "fedavg"
    code, _, err = cli("federate", path, "--out", tmp_path / "run")
    assert code == 2
    assert "--resume continues it" in err


def test_a_saved_model_is_trained_further(
    config: Any, compose_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    save_model(*compose_tiny("mlp"), tmp_path / "base")
    chosen = config(model=str(tmp_path / "base"), rounds=1, clients={"by": "shards:1", "count": 2})
    found = federate(chosen, tmp_path / "run")
    assert found.parameters
    names = [
        folder / "model.safetensors" for folder in (tmp_path / "base", tmp_path / "run" / "model")
    ]
    before, after = map(load_file, names)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all("projector" in name or "connector" in name for name in changed)
