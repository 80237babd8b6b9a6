"""An edit on a chat model is written, checked and evaluated in the form in which the model is asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import tiny
from modalign.editing.benchmarks.scoring import Question, score
from modalign.editing.engine.asking import Asking
from modalign.models.asking import text_ids
from modalign.models.open import open_model
from modalign.patches import load_patch, view
from reports.threads import reported, tried

Cli = Callable[..., tuple[int, str, str]]
PROMPT, TARGET = "one is", "two"
FT = ["--method", "ft", "--set", "epochs=40", "--set", "lr=0.02"]


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    edit = {"subject": "one", "prompt": "{} is", "target": TARGET, "truth": "seven"}
    return tiny.write_jsonl(tmp_path_factory.mktemp("edits") / "edits.jsonl", [edit])


@pytest.fixture(scope="module")
def chat(llm_folder: Callable[..., Path]) -> Path:
    """A model with a chat template."""
    folder = llm_folder("llama")
    assert AutoTokenizer.from_pretrained(folder).chat_template
    return folder


@pytest.fixture
def base(chat: Path, tmp_path: Path) -> Path:
    """The same without one."""
    folder = Path(shutil.copytree(chat, tmp_path / "base"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


@reported("zjunlp/EasyEdit#608", "zjunlp/EasyEdit#374")
def test_what_was_edited_is_what_ask_says(
    cli: Cli, chat: Path, edits: Path, tmp_path: Path
) -> None:
    """Reported: p(patched) 1.00 on the plain prompt, and ask, which uses the template, says what it said."""
    patch = tmp_path / "fix.safetensors"
    code, out, err = cli("edit", "run", chat, edits, "-o", patch, *FT)
    assert code == 0, err
    assert "p(chat)" in out
    assert "p(plain)" in out
    asked = ["ask", chat, PROMPT, "--max-new-tokens", "1"]
    before, after = cli(*asked)[1].strip(), cli(*asked, "--patch", patch)[1].strip()
    assert before != TARGET
    assert after == TARGET
    record = load_patch(patch).header.editing.edits[0]
    model, tokenizer = open_model(chat)
    edited = view(model, load_patch(patch))
    for form, said in (("chat", record.written), ("plain", record.plain)):
        asking = Asking(tokenizer, form)  # type: ignore[arg-type]
        ((found,),) = score(edited, asking, [Question(PROMPT, (TARGET,))])
        assert said == pytest.approx(2.718281828459045**-found.nll, rel=1e-3)


@reported("zjunlp/EasyEdit#608")
def test_the_chat_form_is_that_of_ask(chat: Path) -> None:
    _, tokenizer = open_model(chat)
    asked = text_ids(tokenizer, [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}])  # type: ignore[arg-type]
    assert Asking(tokenizer).text(PROMPT, "one", 0).ids == tuple(asked)


@reported("zjunlp/EasyEdit#374")
def test_eval_shows_both_forms(
    cli: Cli, chat: Path, base: Path, edits: Path, tmp_path: Path
) -> None:
    given = ["--task", "counterfact", "--edits", edits]
    code, out, err = cli("eval", chat, *given)
    assert code == 0, err
    for words in ("plain form", "chat form"):
        assert words in " ".join(out.split())
    values = {}
    for form in ("plain", "chat", "both"):
        rows = tmp_path / f"{form}.jsonl"
        code, out, err = cli("eval", chat, *given, "--form", form, "--json", "--out", rows)
        assert code == 0, err
        values[form] = json.loads(out)
        (line,) = map(json.loads, rows.read_text().splitlines())
        assert line["form"] == ("chat" if form == "chat" else "plain")
        assert ("in_chat" in line) is (form == "both")
    assert values["plain"]["in_chat"] is None
    assert values["both"]["form"] == "plain"
    assert values["both"]["metrics"] == values["plain"]["metrics"]
    assert values["both"]["in_chat"]["metrics"] == values["chat"]["metrics"]
    assert values["plain"]["metrics"]["EM"] != values["chat"]["metrics"]["EM"]
    code, out, err = cli("eval", base, *given)
    assert code == 0, err
    assert "chat form" not in " ".join(out.split())
    code, _, err = cli("eval", base, *given, "--form", "chat")
    assert code == 2
    assert "has no chat template" in err


@reported("zjunlp/EasyEdit#376")
def test_a_model_without_a_template_is_edited_as_before(
    cli: Cli, base: Path, edits: Path, tmp_path: Path
) -> None:
    patch = tmp_path / "fix.safetensors"
    code, out, err = cli("edit", "run", base, edits, "-o", patch, *FT)
    assert code == 0, err
    assert "p(patched)" in out
    assert load_patch(patch).header.settings["template"] == "plain"
    code, out, _ = cli("ask", base, PROMPT, "--max-new-tokens", "1", "--patch", patch)
    assert out.strip() == TARGET


@reported("zjunlp/EasyEdit#608")
def test_what_is_known_already_is_asked_in_the_same_form(
    cli: Cli, chat: Path, edits: Path, tmp_path: Path
) -> None:
    """A model that says the target to a plain prompt may not say it when it is asked."""
    patch, again = tmp_path / "fix.safetensors", tmp_path / "again.safetensors"
    code, _, err = cli("edit", "run", chat, edits, "-o", patch, "--template", "plain", *FT)
    assert code == 0, err
    given = ["edit", "run", chat, edits, "--on", patch, *FT]
    assert cli(*given, "-o", again, "--template", "plain")[0] == 3
    code, _, err = cli(*given, "-o", again)
    assert code == 0, err


@tried("`eval --form` on a file that is no edits")
def test_forms_belong_to_edits(cli: Cli, chat: Path, tmp_path: Path) -> None:
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"question": "one?", "answer": "two"}])
    code, _, err = cli("eval", chat, data, "--form", "chat")
    assert code == 2
    assert "--form" in err
