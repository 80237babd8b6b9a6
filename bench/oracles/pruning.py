"""Are the units that `prune` removes Torch-Pruning's groups? A multi-head Llama of two layers, every unit.

    make oracles        # makes Torch-Pruning's environment, then runs: python -m bench.oracles.pruning PYTHON

Torch-Pruning 1.6.1 never finishes on grouped queries, so heads have their own keys here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from modalign.compression.pruning.structure import find_stack


def model() -> transformers.LlamaForCausalLM:
    """Build two layers with four heads and random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


def ours(whole: transformers.LlamaForCausalLM) -> dict[str, Any]:
    """Return kind -> layer -> unit -> (module, axis, indices), as the oracle writes it."""
    stack = find_stack(whole)
    return {
        kind: [
            [
                sorted(
                    [
                        each.name.removesuffix(".weight"),
                        each.axis,
                        sorted(each.indices[unit].tolist()),
                    ]
                    for each in units.slices
                )
                for unit in range(units.count)
            ]
        ]
        * stack.depth
        for kind, units in stack.units.items()
    }


def main(python: str) -> int:
    """Compare; return 1 if a unit differs."""
    whole = model()
    with tempfile.TemporaryDirectory() as folder:
        whole.save_pretrained(folder)
        script = Path(__file__).with_name("torch_pruning_groups.py")
        done = subprocess.run(
            [python, script], input=json.dumps(folder), capture_output=True, text=True, check=False
        )
    if done.returncode:
        print(done.stderr)
        return 1
    theirs, own, differ = json.loads(done.stdout), ours(whole), 0
    for kind, layers in own.items():
        for number, (units, others) in enumerate(zip(layers, theirs[kind], strict=True)):
            equal = sum(a == b for a, b in zip(units, others, strict=True))
            differ += len(units) - equal
            print(f"{kind}, layer {number}: {len(units)} units, {equal} equal")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
