"""Is the published ordering reproduced? Learnt queries without stage 1 against converters.

Published (Honeybee, arXiv 2312.06742; MIR, arXiv 2410.07167; AcFormer): at equal tokens, with the
language model tuned on little data, learnt queries without their own pre-training do worse than
converters. Here the starter is trained on few scenes, with the language model trained in full and every
method at a quarter of the encoder's tokens. The outcome is printed, whichever way it goes.

    python -m bench.ordering [--scenes 700] [--budget 12000samples] [--seeds 3] [--out DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import modalign
from modalign.cli.console import LiveTable, quiet_libraries, stdout
from modalign.comparison.results import Comparison
from modalign.comparison.table import comparison_table
from modalign.starter.build import write_data

CONVERTERS = ("avgpool_mlp", "pixel_shuffle_mlp", "ldpv2", "c_abstractor")
QUERIES = ("resampler", "qformer_no_stage_one")


def run(scenes: int, budget: str, seeds: int, out: Path) -> Comparison:
    """Compare the six methods on little data."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_data(data, {"train": scenes, "val": 250, "eval": 700})
        with LiveTable() as table:
            return modalign.compare(
                out=out,
                watcher=table,
                methods=[*CONVERTERS, *QUERIES],
                budget=budget,
                seeds=seeds,
                data={split: str(data / f"{split}.jsonl") for split in ("train", "val", "eval")},
                training={"llm": "full"},
            )


def outcome(comparison: Comparison) -> list[str]:
    """Describe the outcome for every pair of a learnt-query method and a converter."""
    lines = []
    found = {(d.first, d.second): d for d in comparison.differences}
    for query in QUERIES:
        for converter in CONVERTERS:
            difference = found.get((query, converter)) or found.get((converter, query))
            if difference is None:
                continue
            sign = 1 if difference.first == query else -1
            gap = sign * difference.difference.value * 100
            if difference.verdict == "no difference found":
                words = "no difference found"
            else:
                words = "as published" if gap < 0 else "against the published order"
            lines.append(
                f"{query} - {converter}: {gap:+.1f} points (Holm p {difference.p_holm:.3f}): {words}"
            )
    return lines


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=700)
    parser.add_argument("--budget", default="12000samples")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/ordering"))
    options = parser.parse_args()
    quiet_libraries()
    comparison = run(options.scenes, options.budget, options.seeds, options.out)
    stdout.print(comparison_table(comparison))
    for method in comparison.methods:
        position = method.skills.get("position")
        if position is not None:
            stdout.print(f"{method.name}: position {position.value:.1%}, {method.tokens} tokens")
    for line in outcome(comparison):
        stdout.print(line, highlight=False)


if __name__ == "__main__":
    main()
