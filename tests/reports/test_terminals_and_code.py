"""What files, models and programs say is shown, never carried out; and no folder runs its code unasked."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from modalign.cli.console import Console, quiet_libraries
from modalign.data.curation.operators.similarity import DualEncoder
from modalign.encoders.base import EncoderError, imported
from modalign.models.encoders.speech import describe_speech
from modalign.models.export.gateway import load_gateway
from modalign.serving.http.log import logging_to_stderr
from modalign.serving.http.settings import read_key
from modalign.tools.build import build_tool
from modalign.tools.spec import PipelineSpec
from modalign.visible import visible
from reports.threads import reported

Cli = Callable[..., tuple[int, str, str]]
ATTACK = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
RAW = set(ATTACK) - set("0;owned]2J31m[")


@reported("EONRaider/RootWire#53", "starhaven-io/pinprick#210")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text())
def test_nothing_is_left_that_a_terminal_carries_out(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable() or not {
        c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160
    } - set("\n\t")
    assert visible(shown) == shown


@reported("starhaven-io/pinprick#210")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_means_what_it_meant(value: Any) -> None:
    written = json.dumps(value, ensure_ascii=False)
    assert json.loads(visible(written)) == value


@reported("dcdpr/jp#856")
def test_the_console_keeps_its_own_colours() -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=60)
    table = Table(title=ATTACK)
    table.add_column(ATTACK)
    table.add_row(Text(ATTACK, style="red"))
    for each in (ATTACK, Text(ATTACK), table):
        console.print(each, markup=False)
    shown = out.getvalue()
    assert "\x1b[31m" in shown
    assert not {"\x07", "\x9b", "\u202e"} & set(shown)
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown


def _clean(*texts: str) -> None:
    for text in texts:
        assert not RAW & set(text), repr(text)


@reported("starhaven-io/pinprick#210")
def test_a_patch_with_escapes_in_its_ids(
    cli: Cli, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Reported: terminal escapes in a patch's ids reach the terminal raw."""
    edits = tmp_path / "edits.json"
    edit = {
        "id": ATTACK, "subject": "one", "prompt": "{} is", "target": "two", "truth": "seven",
    }  # fmt: skip
    edits.write_text(json.dumps([edit]))
    patch = tmp_path / "fix.safetensors"
    method = ["--method", "ft", "--set", "epochs=40", "--set", "lr=0.02"]
    code, out, err = cli("edit", "run", llm_folder("gpt2"), edits, "-o", patch, *method)
    assert code == 0, err
    _clean(out, err)
    for more in ([], ["--json"]):
        code, out, err = cli("patch", "inspect", patch, *more)
        assert code == 0, err
        _clean(out, err)
    assert "u001b" in out


@reported("dcdpr/jp#856")
def test_errors_and_usage_show_escapes(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"question": "a", "answer": "b", ATTACK: 1}) + "\n")
    for words in (["eval", ATTACK, data], ["data", "check", data], ["ask", f"--{ATTACK}"], [ATTACK]):  # fmt: skip
        code, out, err = cli(*words)
        assert code, words
        _clean(out, err)


@reported("berthubert/trifecta#50")
def test_the_log_shows_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr():
        logging.getLogger("modalign.serving").warning("%s", ATTACK)
    err = capsys.readouterr().err
    assert "u001b" in err
    _clean(err)


SAYS = """
import logging, threading, warnings
from modalign.visible import show_controls
show_controls()
text = "\\x1b[2J\\x1b]0;mine\\x07 and \\u202e"
logging.getLogger("of nobody").warning("%s", text)
logging.getLogger("of nobody").error(text, exc_info=ValueError(text))
handler = logging.StreamHandler()
logging.getLogger("a.library").addHandler(handler)
logging.getLogger("a.library").warning(text)
warnings.warn(text, stacklevel=1)
def end():
    raise ValueError(text)
thread = threading.Thread(target=end)
thread.start()
thread.join()
"""


@reported("berthubert/trifecta#50")
def test_nothing_that_python_writes_itself_is_carried_out() -> None:
    """Logs without a handler, logs of libraries with one, warnings, and the ends of threads."""
    done = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, check=True)
    said = done.stderr.decode()
    assert not set("\x1b\x07\u202e") & set(said)
    assert said.count("\\u001b[2J") == 6, said


@reported("NVIDIA/garak#927", "achillean/shodan-python#10")
def test_a_key_that_others_can_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reported: an API key file that others can read is taken without a warning."""
    file = tmp_path / "key.txt"
    file.write_text("secret\n")
    for mode, warned in ((0o600, False), (0o400, False), (0o640, True), (0o604, True)):
        file.chmod(mode)
        caplog.clear()
        assert read_key(file) == "secret"
        assert ("others can read" in caplog.text) is warned
        assert "secret" not in caplog.text


HOSTILE = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
class Any(PreTrainedConfig):
    model_type = "{kind}"
"""


@pytest.fixture
def hostile(tmp_path: Path, tokenizer_folder: Path) -> tuple[Path, Path]:
    """A folder of an unknown type whose every part names code, and what that code would leave."""
    import shutil

    folder, mark = tmp_path / "hostile", tmp_path / "ran"
    shutil.copytree(tokenizer_folder, folder)
    (folder / "evil.py").write_text(HOSTILE.format(mark=str(mark), kind="never_seen"))
    autos = (
        "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM", "AutoProcessor",
        "AutoImageProcessor", "AutoFeatureExtractor",
    )  # fmt: skip
    auto_map: dict[str, Any] = dict.fromkeys(autos, "evil.Any")
    auto_map["AutoTokenizer"] = [None, "evil.Any"]
    config = {"model_type": "never_seen", "auto_map": auto_map, "architectures": ["Any"]}
    for name in ("config", "preprocessor_config", "processor_config"):
        (folder / f"{name}.json").write_text(json.dumps(config))
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values |= {"auto_map": auto_map, "tokenizer_class": "Any"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder, mark


@reported("huggingface/text-generation-inference#2664", "ggml-org/llama.cpp#13246")
@pytest.mark.parametrize(
    "words",
    [
        ["ask", "MODEL", "q"],
        ["eval", "MODEL", "DATA"],
        ["diagnose", "MODEL", "DATA"],
        ["serve", "MODEL", "--port", "0"],
        ["edit", "run", "MODEL", "EDITS", "-o", "OUT.safetensors"],
        ["edit", "stats", "MODEL"],
        ["edit", "suggest", "MODEL", "EDITS"],
        ["edit", "analyze", "MODEL", "EDITS"],
        ["eval", "MODEL", "--task", "zsre", "--edits", "EDITS"],
        ["export", "MODEL", "-o", "OUT"],
        ["train", "--llm", "MODEL", "--encoder", "none", "--train", "DATA", "--out", "OUT"],
        ["train", "--encoder", "image=MODEL", "--train", "DATA", "--out", "OUT"],
        ["edit", "compare", "MODEL", "EDITS", "--out", "OUT"],
        ["doctor", "--encoder", "image=MODEL", "--train", "DATA"],
        ["tools", "ask", "q", "--llm", "MODEL"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_folder_never_runs_its_code_unasked(
    cli: Cli,
    hostile: tuple[Path, Path],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_data: Path,
) -> None:
    """Reported: a folder of unknown model_type asks to run its code, and a piped y runs it."""
    folder, mark = hostile
    edits = tmp_path / "edits.json"
    edits.write_text(
        json.dumps([{"subject": "one", "prompt": "{} is", "target": "two", "truth": "six"}])
    )
    names = {"MODEL": str(folder), "DATA": str(small_data / "data.jsonl"), "EDITS": str(edits)}
    names["OUT"] = str(tmp_path / "out")
    given = []
    for word in words:
        for name, value in names.items():
            word = word.replace(name, value)
        given.append(word)
    monkeypatch.setattr(sys, "stdin", StringIO("y\n" * 20))
    code, out, err = cli(*given)
    assert code, out
    assert not mark.exists()
    assert "y/N" not in out + err
    assert "Python code of its own" in " ".join((out + err).split())


@reported("modelscope/modelscope#1454", "huggingface/transformers#28501")
def test_no_other_reader_runs_it(
    hostile: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mark = hostile
    monkeypatch.setattr(sys, "stdin", StringIO("y\n" * 20))
    quiet_libraries()
    readers: list[Callable[[], Any]] = [
        lambda: describe_speech(str(folder), -1),
        lambda: DualEncoder(str(folder), "cpu", 1),
        lambda: load_gateway(folder),
        lambda: build_tool(PipelineSpec(task="object-detection", model=str(folder))).load(),
    ]
    for read in readers:
        with pytest.raises(Exception):  # noqa: B017, PT011
            read()
        assert not mark.exists()


@reported("huggingface/peft#3085")
def test_a_folder_names_a_program(
    cli: Cli, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The same in other clothes: a description that makes opening a folder run a command."""
    import shutil

    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(llm_folder("gpt2"), folder)
    for tool in (
        {"kind": "mcp", "command": ["touch", str(mark)], "tool": "t", "modalities": ["image"]},
        {"kind": "callable", "target": "subprocess:run", "modalities": ["image"]},
    ):
        for chain in ([tool], [{"kind": "layout", "of": tool}]):
            values = {"modalities": ["image"], "chain": {"tools": chain}}
            (folder / "tools.json").write_text(json.dumps(values))
            code, _, err = cli("ask", folder, "q")
            assert code == 2
            assert "names a program" in err
            assert not mark.exists()
    with pytest.raises(EncoderError, match="not a torch"):
        imported("subprocess:Popen", {"args": ["touch", str(mark)]})
    assert not mark.exists()


@reported("huggingface/transformers#28501")
def test_with_the_option_it_runs(cli: Cli, hostile: tuple[Path, Path]) -> None:
    folder, mark = hostile
    code, _, _ = cli("ask", folder, "q", "--trust-remote-code")
    assert code  # the code is no model
    assert mark.exists()
