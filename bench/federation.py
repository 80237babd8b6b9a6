"""Federation: LoRA's aggregation on digits, and missing modalities on the starter's scenes.

``digits``: a 64-96-10 network knows the digits 0 to 4; ten clients (Dirichlet .3) train LoRA of rank 4 on both
layers, 40 Adam steps per round, for 15 rounds. The clients' code is this bench's own, the server's is modalign's.

``scenes``: ``modalign federate`` on the starter's scenes, four clients, scenarios x strategies.

    python -m bench.federation [digits] [scenes] [--seeds 5] [--set rounds=3] [--out runs/federation]

Finished seeds and trainings are kept: run the same command again to continue.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from modalign.cli.console import quiet_libraries, stdout
from modalign.configuration import assigned, merged
from modalign.federation import lora, seeds
from modalign.federation.config import load_federation
from modalign.federation.lora import A, B
from modalign.federation.report import accuracy_table, findings
from modalign.federation.rules import Tensors
from modalign.federation.run import federate
from modalign.federation.server import Server, Trained, step
from modalign.numbers.bootstrap import mean_of_few
from modalign.pages.terminal import terminal

CLIENTS, ROUNDS, STEPS, RANK, RATE = 10, 15, 40, 4, 5e-3
WIDTHS = {"0": (96, 64), "1": (10, 96)}
WAYS = ("naive", "svd", "into_base", "stack")
SCENES = {
    "train": "both",
    "budget": "160samples",
    "rounds": 5,
    "clients": {"by": "dirichlet:0.5", "count": 4, "limit": 200},
    "scenarios": ["aligned", "missing:0.3", "single:2", "mix:0.2"],
    "strategies": ["plain", "prompt", "proximal:adaptive"],
    "eval_records": 200,
    "seeds": 2,
}


# ---------------------------------------------------------------------- digits


def logits(frozen: Tensors, pairs: Tensors, x: Tensor) -> Tensor:
    for path in WIDTHS:
        weight = frozen[f"{path}.weight"] + pairs[path + B] @ pairs[path + A]
        x = x @ weight.T + frozen[f"{path}.bias"]
        x = functional.relu(x) if path == "0" else x
    return x


def trained(
    frozen: Tensors, pairs: Tensors, x: Tensor, y: Tensor, steps: int, only: str
) -> Tensors:
    """Train the tensors whose names end in ``only`` with Adam; the others do not change."""
    own = {name: t.clone().requires_grad_(name.endswith(only)) for name, t in pairs.items()}
    optimizer = torch.optim.Adam([t for t in own.values() if t.requires_grad], RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(logits(frozen, own, x), y).backward()
        optimizer.step()
    return {name: t.detach() for name, t in own.items()}


def base(x: Tensor, y: Tensor, seed: int) -> Tensors:
    """Train a network on the digits 0 to 4 alone."""
    torch.manual_seed(seed)
    layers = {path: torch.nn.Linear(inner, outer) for path, (outer, inner) in WIDTHS.items()}
    parameters = [p for layer in layers.values() for p in layer.parameters()]
    optimizer = torch.optim.Adam(parameters, RATE)
    few = y < 5
    for _ in range(200):
        optimizer.zero_grad()
        found = layers["1"](functional.relu(layers["0"](x[few])))
        functional.cross_entropy(found, y[few]).backward()
        optimizer.step()
    return {
        f"{p}.{n}": v.detach() for p, layer in layers.items() for n, v in layer.named_parameters()
    }


def digits(seed: int) -> dict[str, list[float]]:
    """Return row -> accuracy, and the relative errors of the first and the last round."""
    data = load_digits()
    order = seeds.rng(seed, "split").permutation(len(data.target))
    x = torch.tensor(data.data[order] / 16, dtype=torch.float32)
    y = torch.tensor(data.target[order])
    cut = len(y) * 4 // 5
    frozen = base(x[:cut], y[:cut], seed)
    parts = owners(y[:cut].numpy(), seed)
    start: Tensors = {}
    for path, (outer, inner) in WIDTHS.items():
        pair = lora.fresh(outer, inner, RANK, seeds.generator(seed, path))
        start |= {path + A: pair[0], path + B: pair[1]}

    def accuracy(weights: Tensors, pairs: Tensors) -> float:
        right = logits(weights, pairs, x[cut:]).argmax(1) == y[cut:]
        return float(right.float().mean())

    def federated(way: str, only: str = "weight") -> list[float]:
        server, errors = Server(dict(start)), []
        for number in range(ROUNDS):
            own = {**frozen}
            for path, more in server.base.items():
                own[f"{path}.weight"] = own[f"{path}.weight"] + more
            answers = [
                Trained(str(k), trained(own, server.tensors, x[p], y[p], STEPS, only), len(p))
                for k, p in enumerate(parts)
            ]
            outcome = step(server, answers, "fedavg", way, RANK, seed * 100 + number)  # type: ignore[arg-type]
            server, errors = outcome.server, [*errors, outcome.lora_error]
        own = {**frozen}
        for path, more in server.base.items():
            own[f"{path}.weight"] = own[f"{path}.weight"] + more
        return [accuracy(own, server.tensors), errors[0], errors[-1]]

    found = {way: federated(way) for way in WAYS}
    found["A frozen"] = federated("naive", B)
    whole = trained(frozen, start, x[:cut], y[:cut], STEPS * ROUNDS, "weight")
    found["centralised"] = [accuracy(frozen, whole)]
    alone = [trained(frozen, start, x[p], y[p], STEPS * ROUNDS, "weight") for p in parts]
    found["local-only, mean"] = [float(np.mean([accuracy(frozen, pairs) for pairs in alone]))]
    return found


def owners(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return each client's rows: every digit's are divided by shares from a Dirichlet distribution."""
    draw = seeds.rng(seed, "owners")
    while True:
        parts: list[list[int]] = [[] for _ in range(CLIENTS)]
        for digit in range(10):
            places = draw.permutation(np.flatnonzero(labels == digit))
            edges = (np.cumsum(draw.dirichlet([0.3] * CLIENTS))[:-1] * len(places)).astype(int)
            for part, own in zip(parts, np.split(places, edges), strict=True):
                part += own.tolist()
        if all(len(part) >= 2 for part in parts):
            return [np.array(part) for part in parts]


def kept(file: Path, work: Callable[[], dict[str, list[float]]]) -> dict[str, list[float]]:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(work()))
    found: dict[str, list[float]] = json.loads(file.read_text())
    return found


def digits_table(count: int, out: Path) -> None:
    found = [
        kept(out / "digits" / f"{seed}.json", lambda s=seed: digits(s)) for seed in range(count)
    ]
    print(
        "| aggregation | accuracy | spread of seeds | minus naive (95 %) | error, round 1 | round 15 |"
    )
    print("|---|---|---|---|---|---|")
    for row in found[0]:
        values = np.array([each[row][0] for each in found])
        gap = "" if row == "naive" or count < 2 else _gap(values - [e["naive"][0] for e in found])
        errors = [
            f"{np.mean([e[row][k] for e in found]):.1e}" if len(found[0][row]) > 1 else ""
            for k in (1, 2)
        ]
        print(
            f"| {row} | {values.mean():.3f} | {values.std(ddof=1):.3f} | {gap} | {errors[0]} | {errors[1]} |"
        )


def _gap(values: np.ndarray) -> str:
    found = mean_of_few(values)
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["digits", "scenes"])
    parser.add_argument("--seeds", type=int, default=5, help="of digits")
    parser.add_argument("--set", action="append", help="a field of the scenes' configuration")
    parser.add_argument("--out", type=Path, default=Path("runs/federation"))
    given = parser.parse_args()
    quiet_libraries()
    if "digits" in given.parts:
        digits_table(given.seeds, given.out)
    if "scenes" in given.parts:
        result = federate(
            load_federation(None, merged(SCENES, assigned(given.set))),
            given.out / "scenes",
            resume=True,
        )
        stdout.print(terminal(accuracy_table(result)))
        for said in findings(result):
            stdout.print(said, markup=False, highlight=False)


if __name__ == "__main__":
    main()
