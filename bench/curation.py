"""Curation: peak memory and speed at two sizes, and the recall of the near-duplicate search.

The rows are short synthetic questions and answers, with planted exact and near duplicates. Every size is curated
by the command line in its own process (`--near-text 0.8`, exact duplicates, length, answer balance); its peak
resident memory is the kernel's figure. For recall, all pairs among 5,000 rows with an exact Jaccard similarity of
at least the threshold (from a sparse matrix product of n-gram sets) are compared with the pairs that MinHash
offered, and the dropped rows with the same rule applied to exact similarities.

    python -m bench.curation [--sizes 200000 1000000] [--recall-rows 5000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

OPERATORS = ("--near-text", "0.8", "--min-chars", "10", "--max-chars", "2000", "--balance", "0.7")
EXACT, NEAR = 0.02, 0.05  # shares of planted duplicates
VOCABULARY = 20_000


def vocabulary(generator: random.Random) -> list[str]:
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = range(len(letters), 0, -1)
    return [
        "".join(generator.choices(letters, weights, k=generator.randint(2, 9)))
        for _ in range(VOCABULARY)
    ]


def changed(text: str, words: Sequence[str], generator: random.Random, edits: int) -> str:
    """Replace some words of a text."""
    parts = text.split()
    for _ in range(edits):
        parts[generator.randrange(len(parts))] = generator.choice(words)
    return " ".join(parts)


def rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yield rows, of which the duplicates repeat or change one of the last thousand."""
    generator = random.Random(seed)
    words = vocabulary(generator)
    recent: list[dict[str, str]] = []
    for number in range(count):
        draw = generator.random()
        if recent and draw < EXACT:
            row = dict(generator.choice(recent))
        elif recent and draw < EXACT + NEAR:
            row = dict(generator.choice(recent))
            row["question"] = changed(row["question"], words, generator, 1)
        else:
            length = generator.randint(8, 16)
            row = {
                "question": " ".join(generator.choices(words, k=length)),
                "answer": generator.choice(("yes", "yes", "no", "two", "red")),
            }
        if len(recent) < 1000:
            recent.append(row)
        else:
            recent[number % 1000] = row
        yield row


def write(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count))


def measure(folder: Path, count: int) -> dict[str, float]:
    """Curate rows in a child process; return seconds, CPU seconds, peak MB and MB of the working file."""
    data, out = folder / f"{count}.jsonl", folder / f"{count}.clean.jsonl"
    write(data, count)
    command = [
        sys.executable,
        "-m",
        "modalign",
        "data",
        "curate",
        str(data),
        "-o",
        str(out),
        "--overwrite",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with subprocess.Popen(
        [*command, *OPERATORS, "--json"], stdout=subprocess.DEVNULL, env=environment
    ) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"curating {count} rows failed with exit code {child.returncode}")
    card = json.loads(out.with_suffix(".card.json").read_text())
    return {
        "rows": count,
        "kept": card["output"]["rows"],
        "seconds": time.monotonic() - began,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,  # Linux counts it in KiB
    }


def similar_texts(count: int, seed: int = 1) -> list[str]:
    """Make texts, of which every fourth is one of the others with up to four words changed."""
    generator = random.Random(seed)
    words = vocabulary(generator)
    texts: list[str] = []
    for number in range(count):
        if number % 4 == 3:
            text = generator.choice(texts)
            texts.append(changed(text, words, generator, generator.randint(0, 4)))
        else:
            texts.append(" ".join(generator.choices(words, k=generator.randint(8, 30))))
    return texts


def exact_pairs(texts: Sequence[str], n: int, threshold: float) -> dict[tuple[int, int], float]:
    """Find all pairs (i < j) with at least this Jaccard similarity."""
    import numpy as np
    from scipy.sparse import csr_matrix

    from modalign.data.curation.minhash import normalise, shingles

    numbers: dict[str, int] = {}
    columns, ends = [], [0]
    for text in texts:
        columns += [numbers.setdefault(s, len(numbers)) for s in shingles(normalise(text), n)]
        ends.append(len(columns))
    sets = csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(texts), len(numbers)))
    common = (sets @ sets.T).tocoo()
    sizes = np.diff(ends)
    upper = common.row < common.col
    first, second, shared = common.row[upper], common.col[upper], common.data[upper]
    similarity = shared / (sizes[first] + sizes[second] - shared)
    near = similarity >= threshold
    pairs = zip(first[near].tolist(), second[near].tolist(), strict=True)
    return dict(zip(pairs, similarity[near].tolist(), strict=True))


def recall(folder: Path, count: int, threshold: float = 0.8) -> dict[str, float]:
    """Measure which of the exact pairs the search finds, and whether each dropped row is rightly dropped."""
    from modalign.data.curation.inputs import Input, batches
    from modalign.data.curation.media import MediaLibrary
    from modalign.data.curation.operators import NearTexts, Workplace
    from modalign.data.curation.operators.near_texts import NearTextsJudge
    from modalign.data.curation.store import Store, place_of

    texts = similar_texts(count)
    data = folder / "recall.jsonl"
    data.write_text("".join(json.dumps({"question": t, "answer": "yes"}) + "\n" for t in texts))
    store = Store(folder / "recall.sqlite")
    place = Workplace(store, MediaLibrary(store, hashing=False), "near", str)
    operator = NearTexts(threshold=threshold)
    judge = NearTextsJudge(operator, place)
    for batch in batches(Input(str(data), 0), media_root=None, modalities=("image",)):
        list(judge.judge(batch.rows))
    # Question and answer together are compared.
    pairs = exact_pairs([f"{text}\nyes" for text in texts], operator.characters, threshold)
    offered = {(place_of(a)[1] - 1, place_of(b)[1] - 1) for a, b in judge.neighbours.pairs()}
    dropped = {place_of(drop.position)[1] - 1 for drop in judge.finish()}
    store.close()
    expected = greedy(count, pairs)
    near = {row for pair in pairs for row in pair}
    return {
        "pairs": len(pairs),
        "pair_recall": len(pairs.keys() & offered) / len(pairs),
        "candidates": len(offered),
        "dropped": len(dropped),
        "row_recall": len(dropped & expected) / len(expected),
        "false_drops": len(dropped - near),
    }


def greedy(count: int, pairs: dict[tuple[int, int], float]) -> set[int]:
    """Return the rows that are near an earlier kept one, by exact similarities."""
    earlier: dict[int, list[int]] = {}
    for first, second in pairs:
        earlier.setdefault(second, []).append(first)
    gone: set[int] = set()
    for row in range(count):
        if any(other not in gone for other in earlier.get(row, ())):
            gone.add(row)
    return gone


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[200_000, 1_000_000])
    parser.add_argument("--recall-rows", type=int, default=5000)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        # Before anything large is imported, since a child's peak starts at its parent's.
        found = [measure(folder, count) for count in options.sizes]
        for size in found:
            print(
                f"{size['rows']:>9,} rows, {size['kept']:>9,} kept: peak {size['peak_mb']:.0f} MB, "
                f"{size['seconds']:.0f} s ({size['cpu']:.0f} s of processor)",
                flush=True,
            )
        if len(found) > 1:
            ratio = found[-1]["peak_mb"] / found[0]["peak_mb"]
            print(f"peak at {found[-1]['rows']:,} rows / at {found[0]['rows']:,}: {ratio:.3f}")
        if options.recall_rows:
            result = recall(folder, options.recall_rows)
            print(
                f"{options.recall_rows:,} rows: {result['pairs']} pairs with Jaccard >= 0.8, "
                f"{result['pair_recall']:.2%} of them among {result['candidates']} candidates; "
                f"{result['dropped']} rows dropped, {result['row_recall']:.2%} of those that exact "
                f"similarities drop, {result['false_drops']} without a near row"
            )


if __name__ == "__main__":
    main()
