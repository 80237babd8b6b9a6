"""A language model with tools: programs, plans, texts; what goes wrong is bounded and counted."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from modalign.data.records import Media
from modalign.endpoints import EndpointError, EndpointUsageError, LocalChat
from modalign.errors import UsageError
from modalign.tools.cache import ResultCache
from modalign.tools.chain import ToolChain, Use
from modalign.tools.planning.answer import AssistedAnswer, Transcript
from modalign.tools.planning.code import CodeAssisted, first_block
from modalign.tools.planning.plan import Planned
from modalign.tools.planning.text import TextAssisted
from modalign.tools.planning.toolbox import Toolbox
from modalign.tools.sandbox.limits import Limits
from modalign.tools.sandbox.run import fence_for

from scripted import OTHER, PICTURE, SOUND, Boxes, Ears, Scripted  # isort: skip

COUNT = """Here is the program:
```python
counts: dict = {}
for thing in detect(floor=0.5):
    counts[thing["text"]] = counts.get(thing["text"], 0) + 1
counts["dog"] += 1
answer = f"{counts['cat']} cat, {counts['dog']} dogs"
```"""


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


@pytest.fixture(scope="module", autouse=True)
def fence() -> None:
    try:
        fence_for()
    except UsageError as error:
        pytest.skip(str(error))


def programs(*lines: Any, **options: Any) -> tuple[CodeAssisted, Scripted]:
    chat = Scripted(*lines)
    limits = Limits(seconds=60, cpu=5)
    return CodeAssisted([Boxes(), Ears()], chat, limits, **options), chat


def kinds(answer: AssistedAnswer) -> list[str]:
    return [step.kind for step in answer.steps]


# Programs


def test_a_program_answers() -> None:
    way, chat = programs(COUNT)
    answer = way.answer("how many?", [PICTURE])
    assert (answer.text, answer.failures) == ("1 cat, 2 dogs", {})
    assert kinds(answer) == ["reply", "call", "program"]
    assert (answer.cost.replies, answer.cost.calls) == (1, 1)
    assert (answer.cost.prompt_tokens, answer.cost.completion_tokens) == (100, 10)
    call = answer.steps[1].content
    assert (call["tool"], call["arguments"]) == ("detect", {"floor": 0.5})
    prompt = chat.asked[0][0][0]["content"]
    assert "def detect(floor: float = ...) -> list[dict]:" in prompt
    assert "hear" not in prompt  # it takes no picture
    assert json.loads(json.dumps(answer.as_json()))["text"] == "1 cat, 2 dogs"


def test_a_failing_program_is_repaired_once() -> None:
    way, chat = programs(fenced("print('so far')\nanswer = detect()[7]['text']"), COUNT)
    answer = way.answer("how many?", [PICTURE])
    assert answer.text == "1 cat, 2 dogs"
    assert answer.failures == {"program-raised": 1}
    told = chat.asked[1][0][-1]["content"]
    assert "line 2: IndexError" in told
    assert "so far" in told


@pytest.mark.parametrize(
    ("lines", "failures"),
    [
        (["no idea", "still none"], {"no-program": 2}),
        ([fenced("answer = "), fenced("import os")], {"program-syntax": 1, "program-raised": 1}),
        ([fenced("x = 1"), fenced("y = 1")], {"program-no-answer": 2}),
        (
            [fenced("answer = hear()"), fenced("answer = detect(wrong=1)")],
            {"program-raised": 2, "malformed-call": 1},
        ),
        ([EndpointError("down")], {"no-reply": 1}),
    ],
)
def test_no_answer_is_an_answer(lines: list[Any], failures: dict[str, int]) -> None:
    way, _ = programs(*lines)
    answer = way.answer("?", [PICTURE])
    assert (answer.text, answer.failures) == (None, failures)


def test_repairs_can_be_none_or_many() -> None:
    way, chat = programs("no", repairs=0)
    assert way.answer("?", [PICTURE]).text is None
    way, chat = programs("no", "no", "no", COUNT, repairs=3)
    assert way.answer("?", [PICTURE]).text == "1 cat, 2 dogs"
    assert len(chat.asked) == 4


def test_programs_name_media_by_place() -> None:
    program = fenced(
        "seen = [len(detect(place)) for place in (0, 2)]\n"
        "try:\n    hear(0)\nexcept ToolError as error:\n    wrong = str(error)\n"
        "answer = [seen, hear(), hear(1), wrong]"
    )
    way, chat = programs(program)
    answer = way.answer("?", [PICTURE, SOUND, OTHER])
    seen, first, second, wrong = json.loads(answer.text or "")
    assert (seen, first, second) == ([3, 0], "seven of nine", "seven of nine")
    assert "hear takes audio, not image" in wrong
    prompt = chat.asked[0][0][0]["content"]
    assert "0 (image), 1 (audio), 2 (image)" in prompt
    assert "def hear(medium: int = 1) -> str:" in prompt


def test_a_tool_that_fails_can_be_caught() -> None:
    program = "try:\n    hear()\nexcept ToolError as error:\n    answer = str(error)"
    way, _ = programs(fenced(program))
    answer = way.answer("?", [Media("audio", data=b"noise")])
    assert answer.text == "hear: ValueError: no sound at all"
    assert answer.failures == {"tool-raised": 1}


@pytest.mark.parametrize("place", ["3", "-1", "'0'", "None", "True", "1.0"])
def test_media_that_are_not_there(place: str) -> None:
    program = (
        f"try:\n    detect(medium={place})\nexcept ToolError as error:\n    answer = str(error)"
    )
    answer = programs(fenced(program))[0].answer("?", [PICTURE])
    assert "there are 0 (image)" in (answer.text or "")


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\nb\n```", "a\nb"),
        ("x\n```\na\n```\n```\nb\n```", "a"),
        ("  ```py\n  a\n  ```", "  a"),
        ("```json\n{}\n```\n```Python\na\n```", "a"),
        ("```python\ncut off", "cut off"),
        ("```python\n```", None),
        ("`a`", None),
        ("", None),
    ],
)
def test_first_block(text: str, program: str | None) -> None:
    assert first_block(text) == program


def test_signatures_are_python() -> None:
    box = Toolbox([Boxes(), Ears()], [PICTURE, SOUND], Transcript(Scripted(), {}))
    tree = ast.parse(box.signatures())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [arg.arg for arg in functions["detect"].args.args] == ["medium", "floor"]
    documentation = ast.get_docstring(functions["detect"]) or ""
    assert 'a list of {"text": str, "score": float (may be missing)' in documentation
    assert "floor: least score" in documentation


# Plans


def plans(*lines: Any, **options: Any) -> tuple[Planned, Scripted]:
    chat = Scripted(*lines)
    return Planned([Boxes(), Ears()], chat, **options), chat


def test_a_plan_calls_observes_and_answers() -> None:
    way, chat = plans([("detect", '{"floor": 0.85}')], [("detect", "{}")], " two cats ")
    answer = way.answer("how many?", [PICTURE])
    assert (answer.text, answer.failures) == ("two cats", {})
    assert kinds(answer) == ["reply", "call", "reply", "call", "reply"]
    messages, schemas = chat.asked[1]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert json.loads(messages[2]["content"]) == [
        {"text": "cat", "score": 0.9, "box": [5, 0, 10, 5]}
    ]
    assert messages[2]["tool_call_id"] == messages[1]["tool_calls"][0]["id"]
    assert [schema["function"]["name"] for schema in schemas] == ["detect"]


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("detect", "{floor", "not JSON"),
        ("detect", "[1]", "not a JSON object"),
        ("paint", "{}", "no tool 'paint'; there are detect"),
        ("", "<garbage>", "not JSON"),
        ("detect", '{"wrong": 1}', "unknown argument 'wrong'"),
        ("detect", '{"floor": "high"}', "not of type number"),
        ("detect", '{"medium": 4}', "there are 0 (image)"),
    ],
)
def test_malformed_calls_are_observed_and_counted(name: str, arguments: str, says: str) -> None:
    way, chat = plans([(name, arguments)], "none")
    answer = way.answer("?", [PICTURE])
    assert (answer.text, answer.failures) == ("none", {"malformed-call": 1})
    _, said, seen = chat.asked[1][0]
    assert says in seen["content"]
    json.loads(said["tool_calls"][0]["function"]["arguments"])  # a server would refuse it else


def test_a_plan_ends_after_k_steps() -> None:
    way, chat = plans(*[[("detect", "{}")]] * 3, "so be it", steps=3)
    answer = way.answer("?", [PICTURE])
    assert answer.text == "so be it"
    assert len(chat.asked) == 4
    last, schemas = chat.asked[3]
    assert schemas is None
    assert "Answer the question now" in last[-1]["content"]


def test_a_plan_that_never_answers() -> None:
    answer = plans(*[[("detect", "{}")]] * 3, steps=2)[0].answer("?", [PICTURE])
    assert (answer.text, answer.failures) == (None, {"no-answer": 1})
    answer = plans("", "then", steps=5)[0].answer("?", [PICTURE])
    assert (answer.text, answer.failures) == ("then", {"empty-reply": 1})
    answer = plans([("detect", "{}")], EndpointError("gone"))[0].answer("?", [PICTURE])
    assert (answer.text, answer.failures) == (None, {"no-reply": 1})


def test_calls_of_one_reply_are_bounded() -> None:
    way, chat = plans([("detect", "{}")] * 9, "done", calls=2)
    answer = way.answer("?", [PICTURE])
    assert (answer.cost.calls, answer.failures) == (2, {"too-many-calls": 7})
    tools = [message for message in chat.asked[1][0] if message["role"] == "tool"]
    assert len(tools) == 9  # every call has its observation
    assert "at most 2 calls" in tools[8]["content"]


def test_observations_are_bounded() -> None:
    way, chat = plans([("detect", "{}")], "done", observation=40)
    way.answer("?", [PICTURE])
    seen = chat.asked[1][0][-1]["content"]
    assert len(seen) < 80
    assert "(cut, " in seen


def test_a_failing_tool_is_observed() -> None:
    way, chat = plans([("hear", "{}")], "nothing")
    answer = way.answer("?", [Media("audio", data=b"noise")])
    assert answer.failures == {"tool-raised": 1}
    assert "no sound at all" in chat.asked[1][0][-1]["content"]


def test_what_cannot_work_stops_at_once() -> None:
    with pytest.raises(EndpointUsageError):
        plans(EndpointUsageError("wrong key"))[0].answer("?", [PICTURE])
    with pytest.raises(UsageError, match="no tool takes video; they take audio, image"):
        plans("x")[0].answer("?", [Media("video", data=b"")])
    with pytest.raises(UsageError, match="a question without media"):
        plans("x")[0].answer("?", [])


# Texts


def test_text_is_read_instead_of_media() -> None:
    chat = Scripted("two", "none")
    chain = ToolChain([Use(Boxes()), Use(Ears())], None, 100, len, ResultCache(None))
    way = TextAssisted(chain, chat)
    answer = way.answer("how many?", [PICTURE])
    assert (answer.text, answer.failures) == ("two", {})
    assert chat.asked[0][0][0]["content"] == "detect: cat; dog; cat\nhow many?"
    answer = way.answer("and now?", [PICTURE, Media("audio", data=b"noise")])
    assert answer.failures == {"tool-raised": 1}
    assert "Medium 1:" in chat.asked[1][0][0]["content"]


# Models in this process


TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}"
    "{% for m in messages %}{{ m.role }} {{ m.content }} "
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
PLAIN_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


@pytest.fixture
def local(llm_folder: Callable[..., Path]) -> Callable[[str], LocalChat]:
    def make(template: str) -> LocalChat:
        tokenizer: Any = AutoTokenizer.from_pretrained(llm_folder())
        tokenizer.chat_template = template
        model = AutoModelForCausalLM.from_pretrained(llm_folder()).eval()
        model.config.max_position_embeddings = 4096
        return LocalChat(model, tokenizer, max_tokens=12)

    return make


@pytest.mark.parametrize("template", [TOOL_TEMPLATE, PLAIN_TEMPLATE], ids=["tools", "plain"])
def test_a_local_model_plans(template: str, local: Callable[[str], LocalChat]) -> None:
    chat = local(template)
    assert chat.knows_tools == (template == TOOL_TEMPLATE)
    answer = Planned([Boxes()], chat, steps=2).answer("how many?", [PICTURE])
    assert answer.cost.replies <= 3
    assert 0 < answer.cost.completion_tokens <= 3 * 12
    assert answer.text or answer.failures
    assert chat.usage.prompt_tokens == answer.cost.prompt_tokens


@pytest.mark.parametrize("template", [TOOL_TEMPLATE, PLAIN_TEMPLATE], ids=["tools", "plain"])
def test_a_local_model_that_calls(
    template: str, local: Callable[[str], LocalChat], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes is put in its mouth; prompts, reading of calls and turns are the real ones."""
    chat = local(template)
    said = iter(['<tool_call>{"name": "detect", "arguments": {"floor": 0.5}}</tool_call>', "two"])

    def decode(ids: Any, skip_special_tokens: bool) -> str:
        return next(said) if skip_special_tokens else "the prompt"

    monkeypatch.setattr(chat.tokenizer, "decode", decode)
    answer = Planned([Boxes()], chat).answer("how many?", [PICTURE])
    assert (answer.text, answer.failures) == ("two", {})
    assert [step.content["arguments"] for step in answer.steps if step.kind == "call"] == [
        {"floor": 0.5}
    ]


def test_a_local_model_writes_programs(local: Callable[[str], LocalChat]) -> None:
    answer = CodeAssisted([Boxes()], local(PLAIN_TEMPLATE)).answer("how many?", [PICTURE])
    assert answer.cost.replies == 2
    assert answer.text or answer.failures


def test_a_conversation_longer_than_the_context(local: Callable[[str], LocalChat]) -> None:
    chat = local(PLAIN_TEMPLATE)
    chat.language_model.config.max_position_embeddings = 64
    answer = Planned([Boxes()], chat).answer("how many?", [PICTURE])
    assert answer.failures == {"no-reply": 1}
    assert "more than its context of 64" in answer.steps[0].content["message"]


def test_a_tokenizer_without_a_template(tokenizer: PreTrainedTokenizerFast, local: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        LocalChat(local(PLAIN_TEMPLATE).language_model, tokenizer)
