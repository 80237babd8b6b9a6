"""Flower's strategies on scripted weights; runs in Flower's own environment, which cannot hold modalign.

Reads ``{"start": [...], "records": [...], "deltas": [round][client][...]}`` and prints strategy ->
the server's weights after every round. Clients send the server's weights plus their delta, as Flower's do.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
)

given = json.load(sys.stdin)
START = np.array(given["start"])
first = {"initial_parameters": ndarrays_to_parameters([START])}
STRATEGIES = {
    "fedavg": FedAvg(**first),
    "fedavgm": FedAvgM(**first, server_learning_rate=0.1, server_momentum=0.9),
    "fedadam": FedAdam(**first, eta=1e-3, beta_1=0.9, beta_2=0.99, tau=1e-3),
    "fedyogi": FedYogi(**first, eta=1e-3, beta_1=0.9, beta_2=0.99, tau=1e-3),
    "fedadagrad": FedAdagrad(**first, eta=1e-3, tau=1e-3),
    "median": FedMedian(**first),
    "trimmed_mean": FedTrimmedAvg(**first, beta=0.2),
    "krum": Krum(**first, num_malicious_clients=1),
}

found = {}
for name, strategy in STRATEGIES.items():
    weights, after = START, []
    for number, deltas in enumerate(given["deltas"], 1):
        results = [
            (None, SimpleNamespace(parameters=ndarrays_to_parameters([weights + np.array(delta)]),
                                   num_examples=records, metrics={}))
            for delta, records in zip(deltas, given["records"], strict=True)
        ]  # fmt: skip
        parameters, _ = strategy.aggregate_fit(number, results, [])
        weights = parameters_to_ndarrays(parameters)[0]
        after.append(weights.tolist())
    found[name] = after
print(json.dumps(found))
