"""A prompt longer than the model's positions is refused with its row and both numbers, in every verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from modalign.errors import DataError, UsageError
from modalign.evaluation.generation import answer
from modalign.lengths import served_length
from modalign.models.asking import text_ids
from modalign.models.open import open_model
from reports.threads import reported

Cli = Callable[..., tuple[int, str, str]]
LIMIT = 256  # positions of the tiny models
LONG = "seven " * 400


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The second row of each file is too long."""
    rows = [{"question": q, "answer": "two"} for q in ("one?", LONG, *["one?"] * 18)]
    options = [row | {"options": ["two", "three"]} for row in rows]
    edits = [
        {"subject": "one", "prompt": p, "target": "two", "truth": "seven"}
        for p in ("{} is", LONG + "{} is")
    ]
    return {
        "data": tiny.write_jsonl(tmp_path / "rows.jsonl", rows),
        "options": tiny.write_jsonl(tmp_path / "options.jsonl", options),
        "edits": tiny.write_jsonl(tmp_path / "edits.jsonl", edits),
        "out": tmp_path / "out",
    }  # fmt: skip


VERBS: dict[str, Callable[[Path, dict[str, Path]], list[Any]]] = {
    "ask": lambda model, has: ["ask", model, LONG],
    "eval": lambda model, has: ["eval", model, has["data"]],
    "choice": lambda model, has: ["eval", model, has["options"], "--task", "choice"],
    "counterfact": lambda model, has: [
        "eval", model, "--task", "counterfact", "--edits", has["edits"]
    ],
    "edit": lambda model, has: ["edit", "run", model, has["edits"], "-o", f"{has['out']}.safetensors"],
    "train": lambda model, has: [
        "train", "--llm", model, "--train", has["data"], "--encoder", "none", "--out", has["out"]
    ],
}  # fmt: skip


@reported("EleutherAI/lm-evaluation-harness#2657", "hiyouga/LlamaFactory#5351")
@pytest.mark.parametrize("family", ["gpt2", "llama"])  # learnt positions, rotary ones
@pytest.mark.parametrize("verb", VERBS)
def test_a_prompt_longer_than_the_model_reads(
    cli: Cli, llm_folder: Callable[..., Path], files: dict[str, Path], verb: str, family: str
) -> None:
    """Reported: an IndexError in ask, eval, counterfact and edit run; rotary models went on silently."""
    code, out, err = cli(*VERBS[verb](llm_folder(family), files))
    said = " ".join((out + err).split())
    assert code == 3, said
    assert f"{LIMIT}" in said
    assert "the question" in said if verb == "ask" else ".jsonl:2" in said


def _ids(tokenizer: Any, question: str) -> list[int]:
    return text_ids(tokenizer, [{"role": "user", "content": [{"type": "text", "text": question}]}])


@reported("hiyouga/LlamaFactory#5351", "intel/ipex-llm#12551")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_answer_ends_where_the_positions_end(
    llm_folder: Callable[..., Path], family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = open_model(llm_folder(family))
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    question = next(
        text for n in range(400, 0, -1)
        if len(_ids(tokenizer, text := "seven " * n)) <= LIMIT - 4
    )  # fmt: skip
    size = len(_ids(tokenizer, question))
    said = answer(model, tokenizer, question, max_new_tokens=64)
    with torch.no_grad():
        ids = torch.tensor([_ids(tokenizer, question)])
        alone = model.generate(ids, max_new_tokens=LIMIT - size, do_sample=False, pad_token_id=0)
    assert said == tokenizer.decode(alone[0, size:], skip_special_tokens=True).strip()
    assert f"cut after {LIMIT - size} tokens" in caplog.text


@reported("intel/ipex-llm#12551")
def test_short_positions_everywhere_in_editing(
    cli: Cli, llm_folder: Callable[..., Path], files: dict[str, Path], tmp_path: Path
) -> None:
    """Text for statistics and drift is read in pieces of 512 and 256: shorter where the model reads less."""
    import json
    import shutil

    folder = Path(shutil.copytree(llm_folder("gpt2"), tmp_path / "short"))
    model, _ = open_model(folder)
    model.transformer.wpe.weight = torch.nn.Parameter(model.transformer.wpe.weight[:40].clone())
    model.config.n_positions = 40
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["n_positions"] == 40
    text = tmp_path / "text.txt"
    text.write_text(LONG)
    edits = tiny.write_jsonl(
        tmp_path / "one.jsonl",
        [{"subject": "one", "prompt": "{} is", "target": "two", "truth": "seven"}],
    )
    for given in ([], ["--text", text]):
        code, _, err = cli("edit", "stats", folder, "--tokens", "64", *given)
        assert code == 0, err
    code, _, err = cli("eval", folder, "--task", "counterfact", "--edits", edits, "--text", text)
    assert code == 0, err


@reported("EleutherAI/lm-evaluation-harness#2657")
def test_a_server_takes_no_more_than_the_model_reads() -> None:
    assert (served_length(None, 256), served_length(40, 256), served_length(40, None)) == (
        256, 40, 40,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"257.*256"):
        served_length(257, 256)


@reported("EleutherAI/lm-evaluation-harness#2657")
def test_media_count(compose_tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, processor = compose_tiny("linear")
    media = [tiny.image(number) for number in range(16)]
    with pytest.raises(DataError, match=rf"{LIMIT} positions"):
        answer(model, processor, "one?", media)
