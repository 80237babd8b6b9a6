"""What saving a model and asking it need is checked before step 0, and by the doctor."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

import tiny
import usable
from modalign.data.corpus import Corpus, windows
from modalign.errors import UsageError
from modalign.models.saved import open_composed
from modalign.training.settings import Stage, TrainSettings
from modalign.training.tuning import Tuning
from reports.threads import reported, tried

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(llm_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A tiny language model, to be spoiled."""
    return Path(shutil.copytree(llm_folder("llama"), tmp_path / "llm"))


def _given(model: Path, data: Path, **more: Any) -> list[Any]:
    words = ["--llm", model, "--train", data, "--encoder", "none", "--method", "linear"]
    for key, value in {"parts.image_size": 32, "parts.patch_size": 8, **more}.items():
        words += ["--set", f"{key}={value}"]
    return words


def _both(cli: Cli, model: Path, data: Path, out: Path) -> tuple[str, str]:
    """What the doctor and train say; neither begins a training."""
    code, said, err = cli("doctor", *_given(model, data))
    assert code, said
    doctor = " ".join((said + err).split())
    code, said, err = cli("train", *_given(model, data), "--budget", "8samples", "--out", out)
    assert code, said
    assert not (out / "run").exists()
    assert not (out / "model").exists()
    return doctor, " ".join((said + err).split())


@reported("huggingface/transformers#4122", "huggingface/transformers#29665")
def test_neither_padding_nor_end(cli: Cli, model: Path, small_data: Path, tmp_path: Path) -> None:
    """Reported: doctor finds nothing, train ends in a traceback after training."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(model)
    for said in _both(cli, model, small_data / "data.jsonl", tmp_path / "out"):
        assert "neither a padding nor an end token" in said


@reported("huggingface/transformers#29665")
def test_what_cannot_be_written_is_found(
    cli: Cli, model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in other clothes: anything that saving would stumble over."""

    def broken(*_: object, **__: object) -> None:
        raise TypeError("Object of type set is not JSON serializable")

    monkeypatch.setattr(GenerationConfig, "save_pretrained", broken)
    for said in _both(cli, model, small_data / "data.jsonl", tmp_path / "out"):
        assert "could not be saved and asked after training" in said
        assert "set is not JSON" in said


def _full(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10, 10, 0))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    _full(monkeypatch)


@reported("mlfoundations/open_lm#154")
@pytest.mark.parametrize(
    ("verb", "more", "run"),
    [("train", [], "run"), ("compare", ["--methods", "linear,mlp", "--seeds", "2"], "runs")],
)
def test_a_full_disk_is_found(
    verb: str,
    more: list[str],
    run: str,
    cli: Cli,
    model: Path,
    small_data: Path,
    tmp_path: Path,
    full_disk: None,
) -> None:
    given = _given(model, small_data / "data.jsonl")
    if verb == "compare":
        given = [word for word in given if word not in ("--method", "linear")]
    code, _, err = cli(verb, *given, *more, "--budget", "8samples", "--out", tmp_path / "out")
    assert code == 2, err
    assert "are free: choose another place" in err
    assert not (tmp_path / "out" / run).exists()


@reported("mlfoundations/open_lm#154")
def test_a_full_disk_is_found_before_a_saved_model_is_trained_further(
    llm_folder: Callable[..., Path], tmp_path: Path, full_disk: None
) -> None:
    """distill, federate, unlearn and the applications' ``train`` go by it."""
    opened = open_composed(llm_folder("llama"))
    samples = windows(Corpus("poem", ["one two three four"] * 4), opened.tokenizer, 8)
    tuning = Tuning(opened, [Stage(llm="lora")], TrainSettings(llm="lora"), samples)
    with pytest.raises(UsageError, match=r"the trained model takes .* are free"):
        tuning.check(tmp_path / "out")


@reported("mlfoundations/open_lm#154")
def test_a_full_disk_is_found_before_other_work(
    cli: Cli, llm_folder: Callable[..., Path], tower_folder: Callable[..., Path], compose_tiny: Any,
    small_data: Path, tmp_path: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = small_data / "data.jsonl"
    given = usable.things(tmp_path, llm_folder(), tower_folder(), compose_tiny, data)
    _full(monkeypatch)
    for verb in ("prune", "merge", "merge adapters", "import", "export", "embed", "patch apply"):
        out = tmp_path / verb
        code, _, err = cli(*usable.words(verb, given, out))
        assert code == 2, (verb, err)
        assert "are free: choose another place" in err, verb
        assert not (out / "model").exists()


@reported("huggingface/transformers#29665", "haotian-liu/LLaVA#1144")
def test_a_generation_configuration_that_transformers_does_not_save(
    cli: Cli, model: Path, small_data: Path, tmp_path: Path
) -> None:
    """Many models on the hub give a temperature without saying that they sample."""
    file = model / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.6}))
    given = _given(model, small_data / "data.jsonl")
    more = ["--budget", "8samples", "--factor", "1", "--out", tmp_path / "out"]
    code, _, err = cli("train", *given, *more)
    assert code == 0, err


@tried("training on a file of text rows alone")
@pytest.mark.parametrize("kind", ["text alone", "an answer first"])
def test_data_without_media_trains_to_the_end(
    cli: Cli, model: Path, tmp_path: Path, kind: str
) -> None:
    """Found beside it: a model that saw no media could not be compared with what was saved."""
    data = tiny.write_jsonl(
        tmp_path / "rows.jsonl", [{"question": f"{n}?", "answer": "two"} for n in range(20)]
    )
    if kind == "an answer first":
        said = [{"role": "assistant", "content": "one"}]
        tiny.write_jsonl(data, [{"messages": said}] * 20)
    given = _given(model, data, **{"training.llm": "full"})
    more = ["--budget", "8samples", "--factor", "1", "--out", tmp_path / "out"]
    code, _, err = cli("train", *given, *more)
    assert code == 0, err
    assert (tmp_path / "out" / "model" / "config.json").exists()
