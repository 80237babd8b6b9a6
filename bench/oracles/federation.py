"""Are the server rules Flower's? Scripted deltas, five rounds, equal to 1e-6.

    make oracles        # makes Flower's environment, then runs: python -m bench.oracles.federation PYTHON

Flower's ``fedavgm`` leaves out the factor 1 - b1 (its rate is .1 here); its ``fedadam`` corrects for the bias, a
factor on eta that is known for each round; its moments start at zero, and all its means are weighted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from modalign.federation.rules import Tensors, Update, server_rule

ROUNDS, RECORDS, TOLERANCE = 5, (10, 30, 5, 55, 20), 1e-6
ADAPTIVE = "start=0;weighted=true"
RULES = {
    "fedavg": "fedavg",
    "fedavgm": "fedavgm",
    "fedadam": f"fedadam[{ADAPTIVE};eta={{eta}}]",
    "fedyogi": f"fedyogi[{ADAPTIVE}]",
    "fedadagrad": f"fedadagrad[{ADAPTIVE};momentum=0]",
    "median": "median",
    "trimmed_mean": "trimmed_mean[share=0.2]",
    "krum": "krum[faulty=1]",
}


def ours(rule: str, start: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Return the server's weights after every round."""
    weights, state, after = torch.from_numpy(start), dict[str, torch.Tensor](), []
    for number, values in enumerate(deltas, 1):
        eta = 1e-3 * (1 - 0.99 ** (number + 1)) ** 0.5 / (1 - 0.9 ** (number + 1))
        updates = [
            Update(str(k), {"w": torch.from_numpy(value)}, RECORDS[k])
            for k, value in enumerate(values)
        ]
        step: Tensors
        step, state = server_rule.entry(RULES[rule].format(eta=eta)).function(updates, state)
        weights = weights + step["w"]
        after.append(weights.numpy())
    return np.array(after)


def main(python: str) -> int:
    draw = np.random.default_rng(0)
    start, deltas = draw.normal(size=(4, 3)), draw.normal(size=(ROUNDS, len(RECORDS), 4, 3)) / 10
    given = {"start": start.tolist(), "records": RECORDS, "deltas": deltas.tolist()}
    script = Path(__file__).with_name("flwr_rules.py")
    found = json.loads(
        subprocess.run(
            [python, script],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
        ).stdout.splitlines()[-1]
    )
    worst = 0.0
    for rule, theirs in found.items():
        gap = float(np.abs(ours(rule, start, deltas) - np.array(theirs)).max())
        worst = max(worst, gap)
        print(f"{rule}: largest difference {gap:.1e}")
    print("equal" if worst <= TOLERANCE else f"NOT equal to {TOLERANCE}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
