"""Every verb takes a GGUF file as it takes the folder that the file was made from, and answers the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
import tiny_gguf
from modalign.models.open import open_model
from modalign.serving.engine import open_engine
from modalign.training.sources import Parts

Cli = Callable[..., tuple[int, str, str]]
QA = [{"id": f"q{n}", "question": f"what is {n}?", "answer": "odd"} for n in range(4)]
EDITS = [{"id": "1", "subject": "seven", "prompt": "{} is", "target": "even", "truth": "odd"}]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this module's own, so that the file is unpacked once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("unpacked")
        patch.setenv("MODALIGN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def file(llm_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write_gguf(llm_folder(), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def same(cli: Cli, file: Path, folder: Path, *arguments: object) -> str:
    """A verb's output on the file, once it is that on the folder; FILE stands for the model."""
    said = []
    for model in (file, folder):
        words = [model if word == "FILE" else word for word in arguments]
        words = [str(word).replace("OUT", f"{model.name}-out") for word in words]
        code, out, err = cli(*words)
        assert code == 0, err
        said.append(out.replace(str(model), "MODEL"))
    assert said[0] == said[1]
    return said[0]


def test_it_is_asked_and_chooses(cli: Cli, file: Path, llm_folder: Callable[..., Path]) -> None:
    folder = llm_folder()
    assert same(cli, file, folder, "ask", "FILE", "is seven odd?", "--max-new-tokens", 4, "--json")
    same(
        cli, file, folder, "choose", "FILE", "is it?", "--option", "yes", "--option", "no", "--json"
    )


def test_it_is_judged_and_embeds(
    cli: Cli, file: Path, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    rows = tiny.write_jsonl(tmp_path / "qa.jsonl", QA)
    said = same(cli, file, llm_folder(), "eval", "FILE", rows, "--max-new-tokens", 3, "--json")
    assert json.loads(said)
    for name, model in (("a", file), ("b", llm_folder())):
        assert cli("embed", model, rows, "-o", tmp_path / name)[0] == 0
    vectors = [next((tmp_path / name).glob("*.npy")).read_bytes() for name in "ab"]
    assert vectors[0] == vectors[1]


def test_it_is_edited_and_patched(
    cli: Cli, file: Path, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    edits, patch = tmp_path / "edits.json", tmp_path / "fix.safetensors"
    edits.write_text(json.dumps(EDITS))
    run = ["edit", "run", file, edits, "-o", patch, "--method", "ft", "--settings", "published"]
    code, _, err = cli(*run, "--set", "layers=[1]", "--set", "epochs=40", "--set", "lr=0.02")
    assert code in (0, 1), err
    assert patch.exists(), err
    for verb in ("verify", "inspect"):
        code, _, err = cli("patch", verb, patch, file)
        assert code == 0, err
    out = tmp_path / "patched"
    code, _, err = cli("patch", "apply", file, patch)  # there is nothing to change in place
    assert (code, "-o FOLDER" in err) == (2, True)
    for model, target in ((file, out), (llm_folder(), tmp_path / "other")):
        # the unpacked tokenizer gives the same ids by another pipeline, which the patch cannot know
        code, _, err = cli("patch", "apply", model, patch, "-o", target, "--any-tokenizer")
        assert code == 0, err
    first, second = (open_model(each)[0].state_dict() for each in (out, tmp_path / "other"))
    assert all(torch.equal(first[name], second[name]) for name in second)
    code, _, err = cli("patch", "diff", out, file, "-o", tmp_path / "again.safetensors")
    assert code == 0, err


def test_it_is_pruned(
    cli: Cli, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modalign.compression.pruning.run.check_clean", lambda *given: 0.0)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"what is {word}?" for word in ("one", "two", "three", "four") * 2))
    options = [
        "--keep",
        0.8,
        "--units",
        "mlp",
        "--score",
        "l2",
        "--recover",
        "none",
        "--data",
        text,
    ]
    code, _, err = cli("prune", file, "-o", tmp_path / "small", *options)
    assert code == 0, err
    assert (tmp_path / "small" / "config.json").is_file()


def test_it_is_exported_by_importing(
    cli: Cli, file: Path, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    code, _, err = cli("export", file, "-o", tmp_path / "out")
    assert (code, f"modalign import {file} -o {tmp_path / 'out'}" in err) == (2, True)
    code, said, err = cli("import", file, "-o", tmp_path / "out", "--dtype", "bfloat16", "--json")
    assert code == 0, err
    assert json.loads(said)["dtype"] == "bfloat16"
    written: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    wanted: Any = AutoModelForCausalLM.from_pretrained(llm_folder()).to(torch.bfloat16)
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(written.state_dict()[name], tensor)
    code, _, err = cli("import", file, "-o", tmp_path / "out")
    assert (code, "--overwrite" in err) == (2, True)
    code, said, _ = cli("import", file, "-o", tmp_path / "out", "--overwrite")
    assert (code, "changed nothing" in said) == (0, True)


def test_it_is_a_part_and_is_served(file: Path) -> None:
    parts = Parts(llm=str(file), encoder={})
    loaded = parts.load_llm()
    assert loaded.stored == torch.float32
    engine = open_engine(file, device="cpu", threads=1)
    try:
        assert list(engine.modalities) == []
    finally:
        engine.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "{}", "a question"],
        ["choose", "{}", "which?", "--option", "a", "--option", "b"],
        ["embed", "{}", "QA", "-o", "OUT"],
        ["eval", "{}", "QA"],
        ["diagnose", "{}", "QA"],
        ["edit", "run", "{}", "EDITS", "-o", "OUT.safetensors", "--method", "ft"],
        ["import", "{}", "-o", "OUT"],
        ["prune", "{}", "-o", "OUT"],
        ["serve", "{}", "--port", "0"],
        ["distill", "store", "{}", "QA", "-o", "OUT"],
    ],
    ids=lambda words: words[0],
)
def test_a_broken_file_is_one_line(cli: Cli, tmp_path: Path, arguments: list[str]) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\0\0\0" + bytes(3))
    places = {"{}": str(broken), "QA": str(tiny.write_jsonl(tmp_path / "qa.jsonl", QA))}
    (tmp_path / "edits.json").write_text(json.dumps(EDITS))
    places |= {"EDITS": str(tmp_path / "edits.json"), "OUT": str(tmp_path / "out")}
    code, out, err = cli(*(places.get(word, word) for word in arguments))
    assert (code, out) == (2, ""), err
    assert "cut short" in " ".join(err.split())
    assert not (tmp_path / "out").exists()
