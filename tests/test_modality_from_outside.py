"""A seventh modality, counts, from a package of its own (examples/my_modality), through every verb."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

import tiny
from modalign.data import modalities
from modalign.data.modalities import Modality, modality_names, modality_of, register
from modalign.data.readers import read_records, write_records
from modalign.data.validation import BrokenData, validate
from modalign.errors import UsageError

Cli = Callable[..., tuple[int, str, str]]
PACKAGE = Path(__file__).parents[1] / "examples" / "my_modality"
QUESTION = "what is one?"


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Weeks of visits, busy or not: half of the counts of a week that is not busy are 0."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        busy = number % 2
        counts = rng.poisson(20 if busy else 1, size=4 + number % 3).tolist()
        found.append({"counts": counts, "question": QUESTION, "answer": "yes" if busy else "no"})
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package as pip would install it: on the path, with its entry point."""
    site = tmp_path_factory.mktemp("site")
    about = site / "modalign_counts-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: modalign-counts\nVersion: 0.1.0\n"
    )
    (about / "entry_points.txt").write_text("[modalign.modalities]\ncounts = counts.media:COUNTS\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE)
        patch.syspath_prepend(site)
        before = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(PACKAGE), before]))
        modalities._places.cache_clear()
        yield
    modalities._places.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "counts"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def work(
    installed: None, llm_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with data and a configuration."""
    folder = tmp_path_factory.mktemp("counts")
    for name, count, seed in (("train", 40, 0), ("val", 8, 1), ("test", 20, 2)):
        tiny.write_jsonl(folder / f"{name}.jsonl", rows(count, seed))
    (folder / "week.json").write_text("[22, 17, 30, 25, 19]")
    config = {
        "parts": {"llm": str(llm_folder()), "encoder": {"counts": "none"}},
        "data": {"train": "train.jsonl", "val": "val.jsonl"},
        "training": {
            "llm": "full",
            "batch_size": 8,
            "learning_rates": {"connector": 3e-3, "llm": 3e-3, "encoder": 3e-3},
        },
        "budget": "480samples",
    }
    (folder / "train.yaml").write_text(json.dumps(config))
    compared = {
        "methods": ["linear"],
        "seeds": 1,
        "budget": "16samples",
        "data": {**config["data"], "eval": "test.jsonl"},
    }
    (folder / "compare.yaml").write_text(json.dumps(config | compared))
    return folder


@pytest.fixture(scope="module")
def model(work: Path) -> Path:
    """A trained model."""
    command = [sys.executable, "-m", "modalign", "train", str(work / "train.yaml")]
    command += ["--method", "linear", "--factor", "1", "--out", str(work / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return work / "run" / "model"


def test_it_is_known_by_name(installed: None) -> None:
    assert modality_names() == (
        *("image", "audio", "video", "series", "table", "vectors"),
        "counts",
    )
    assert modality_of("counts").inline is not None


def test_rows_are_read_checked_and_written(installed: None, tmp_path: Path) -> None:
    path = tiny.write_jsonl(
        tmp_path / "data.jsonl",
        [
            {"counts": [1, 2], "question": "<counts> or <table>?", "answer": "one"},
            {"counts": [[1, 2], [3]], "question": "how many?", "answer": "two"},
            {"counts": [1, -2], "question": "how many?", "answer": "three"},
        ],
    )
    read = read_records(path, modalities=("counts",))
    first, second, _ = read.records
    assert [medium.modality for medium in first.media()] == ["counts"]
    assert first.messages[0].text == " or <table>?"
    assert [json.loads(medium.read()) for medium in second.media()] == [[1, 2], [3]]
    with pytest.raises(BrokenData, match=r"data\.jsonl:3: counts: count 1 is -2\.0"):
        validate(read)
    write_records(read.records[:2], tmp_path / "again.jsonl")
    again = read_records(tmp_path / "again.jsonl", modalities=("counts",)).records
    assert [list(record.media()) for record in again] == [list(r.media()) for r in (first, second)]


def test_train_and_eval_learn_what_counts_say(cli: Cli, model: Path, work: Path) -> None:
    code, text, err = cli("eval", model, work / "test.jsonl", "--json")
    assert code == 0, (text, err)
    overall = json.loads(text)["overall"]
    assert overall["measures"]["accuracy"]["value"] >= 0.9
    assert overall["references"]["blank media"]["accuracy"]["value"] <= 0.6


def test_doctor_looks_at_it(cli: Cli, work: Path) -> None:
    code, text, err = cli("doctor", work / "compare.yaml", "--json")
    assert code == 0, (text, err)
    assert json.loads(text)["encoder"]["counts"]["feature_size"] == 2


def test_ask_takes_it_by_both_forms(cli: Cli, model: Path, work: Path) -> None:
    code, text, err = cli("ask", model, "--media", f"counts={work / 'week.json'}", QUESTION)
    assert (code, text.strip()) == (0, "yes"), err
    shown = subprocess.run(
        [sys.executable, "-m", "modalign", "ask", str(model), "--counts", "none.json", QUESTION],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 3
    assert "none.json: the file does not exist" in shown.stderr.replace("\n", " ")


def test_diagnose_looks_into_it(cli: Cli, model: Path, work: Path) -> None:
    code, text, err = cli("diagnose", model, work / "test.jsonl", "--limit", 8, "--json")
    assert code == 0, (text, err)
    assert [each["modality"] for each in json.loads(text)["modalities"]] == ["counts"]


def test_export_carries_its_encoder(cli: Cli, model: Path, work: Path) -> None:
    """The command loads the folder in a process without modalign, and compares logits there."""
    out = work / "exported"
    code, text, err = cli(
        *("export", model, "--out", out, "--to", "remote-code"),
        *("--data", work / "test.jsonl"),
    )
    assert code == 0, (text, err)
    assert "log1p" in (out / "counts_encoder.py").read_text()
    assert "A language model that counts" in (out / "README.md").read_text()


def test_compare_trains_it_in_other_processes(work: Path) -> None:
    # In a process of its own: the server that workers are forked from keeps the path that it was started with.
    words = [sys.executable, "-m", "modalign", "compare", str(work / "compare.yaml"), "--json"]
    done = subprocess.run(
        [*words, "--out", str(work / "compared")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    (method,) = json.loads(done.stdout)["methods"]
    assert (method["name"], method.get("failure")) == ("linear", None)


def test_serve_takes_it_in_a_request(model: Path) -> None:
    command = [sys.executable, "-m", "modalign", "serve", str(model), "--port", "0"]
    server = subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found, server.communicate()[1]
        (listed,) = httpx2.get(f"{found[0]}/models").json()["data"]
        assert listed["media"] == [
            {"name": "counts", "words": "counts", "endings": [], "json": "array"}
        ]
        answers = [asked(found[0], counts) for counts in ([25, 21, 18, 30], [0, 1, 0, 2])]
        assert [answer["choices"][0]["message"]["content"] for answer in answers] == ["yes", "no"]
        assert "counts" in asked(found[0], ["many"])["error"]["param"]
    finally:
        server.kill()
        server.communicate()


def asked(address: str, counts: list[Any]) -> dict[str, Any]:
    content = [{"type": "counts", "counts": counts}, {"type": "text", "text": QUESTION}]
    request = {"messages": [{"role": "user", "content": content}], "temperature": 0}
    answer: dict[str, Any] = httpx2.post(
        f"{address}/chat/completions", json=request, timeout=60
    ).json()
    return answer


def test_a_call_makes_one_known_and_names_are_taken_once(installed: None) -> None:
    counts = modality_of("counts")
    assert register(counts) is counts
    with pytest.raises(UsageError, match="the modality 'image' exists"):
        register(renamed(counts, "image"))
    with pytest.raises(UsageError, match="letters, digits and _ only"):
        register(renamed(counts, "my counts"))
    try:
        assert modality_of(register(renamed(counts, "sums")).name).name == "sums"
        assert modality_names()[-1] == "sums"
    finally:
        modalities._REGISTERED.pop("sums", None)
    with pytest.raises(UsageError, match="no modality 'sums': choose from image"):
        modality_of("sums")


def renamed(modality: Modality, name: str) -> Modality:
    return Modality(**{**vars(modality), "name": name})
