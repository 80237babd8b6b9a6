"""What programs say in the end: half characters, messages that recurse, values whose methods raise.

Lone surrogates from a model-written program ended the caller, and an exception whose
``str`` recurses was called "CPU time used up".
"""

from __future__ import annotations

import json

import pytest

from modalign.tools.sandbox.run import Function, run_program
from modalign.tools.worker import _failure
from reports.threads import reported

DEEP = "x = []\nfor i in range(100000):\n    x = [x]\n"
ECHO = {"f": Function(("a",), lambda arguments: arguments["a"])}


@reported("UKGovernmentBEIS/inspect_ai#2316", "python/cpython#87214")
@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        ('answer = "a\\ud800b"', None, "a?b"),
        ('answer = ["\\udfff"]', None, '["?"]'),
        ('answer = f("\\ud800")', None, "?"),
        ('answer = f({"\\ud800": 1})["?"]', None, "1"),
        ('raise ValueError("\\ud800")', "raised", "line 1: ValueError: ?"),
        (DEEP + "raise ValueError(x)", "raised", "line 4: ValueError: its message cannot be shown"),
        (DEEP + "raise SystemExit(x)", "raised", "line 4: SystemExit: its message cannot be shown"),
        (DEEP + "answer = x", "no-answer", "neither text nor JSON"),
        (DEEP + "answer = {(1, 2), 3}\nanswer = f(x)", "raised", "RecursionError"),
        ("raise ValueError(10 ** 6000)", "raised", "cannot be shown (ValueError)"),
        ("answer = 10 ** 6000", "no-answer", "neither text nor JSON"),
    ],
)
def test_a_program_says_what_ended_it(source: str, kind: str | None, said: str) -> None:
    ran = run_program(source, ECHO)
    assert ran.kind == kind, ran
    assert said in (ran.message if kind else str(ran.answer))
    json.dumps(ran.answer, ensure_ascii=False).encode()


@reported("UKGovernmentBEIS/inspect_ai#2316")
def test_what_is_printed_can_be_shown() -> None:
    assert run_program('print("\\ud800x")\nanswer = 1', {}).output.encode() == b"?x\n"


@reported("UKGovernmentBEIS/inspect_ai#2316")
@pytest.mark.parametrize(
    "value", ["str(self)", "1 / 0", "raise_(SystemExit)", "[].pop()", "'\\ud800'"]
)
def test_plain_python_can_do_no_more(value: str) -> None:
    source = f"""
def raise_(error):
    raise error
class A(Exception):
    def __str__(self):
        return {value}
    __repr__ = __str__
"""
    ran = run_program(source + "raise A()", {}, restricted=False)
    assert ran.kind == "raised", ran
    assert ran.message.startswith("line 8: A: ")
    ran.message.encode()
    ran = run_program(source + "answer = {A(), 3}", {}, restricted=False)
    assert ran.kind == "no-answer", ran


@reported("python/cpython#87214")
def test_a_tool_whose_error_has_no_text() -> None:
    class EndlessError(Exception):
        def __str__(self) -> str:
            return str(self)

    assert (
        _failure(EndlessError())["error"]
        == "EndlessError: its message cannot be shown (RecursionError)"
    )
