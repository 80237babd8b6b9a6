"""Programs that try to get out of the sandbox, to fill it, or to never end.

Each is written against the language (RestrictedPython); what comes of it is stated: a kind of failure
with words of its message, or the harmless answer. ``{secret}``, ``{written}`` are a file to read and
one to write.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Escape:
    """An attempt, and what must come of it."""

    name: str
    program: str
    kind: str | None  # None: it ends, with the answer
    words: str


def _fails(name: str, kind: str, words: str, program: str) -> Escape:
    return Escape(name, program, kind, words)


def _harmless(name: str, answer: str, program: str) -> Escape:
    return Escape(name, program, None, answer)


ESCAPES = [
    # Attributes by other names than a dot
    _fails("format", "raised", "format.* is not safe", "answer = '{0.__class__}'.format(1)"),
    _fails("format_map", "raised", "not safe", "answer = '{a.__class__}'.format_map({'a': 1})"),
    _fails("format of the type", "raised", "not safe", "answer = str.format('{0.__class__}', 1)"),
    _fails("format in map", "raised", "not safe", "answer = list(map(str.format, ['{0.real}'], [1]))"),
    _fails(
        "subclasses in an f-string",
        "syntax",
        "starts with \"_\"",
        "answer = f'{().__class__.__mro__[1].__subclasses__()}'",
    ),
    _fails("subclasses", "syntax", "starts with \"_\"", "answer = ''.__class__.__base__.__subclasses__()"),
    _fails("getattr", "raised", "invalid attribute name", "answer = getattr((), '__class__')"),
    _fails(
        "getattr, name put together",
        "raised",
        "invalid attribute name",
        "answer = getattr((), '_' + '_cla' + 'ss_' + '_')",
    ),
    _fails(
        "getattr, name that changes its mind",
        "syntax",
        "classes are not allowed",
        "class Name(str):\n    def startswith(self, *a):\n        return False\n"
        "answer = getattr((), Name('__class__'))",
    ),
    _harmless("mro without underscores", "2", "answer = len(str.mro())"),
    _fails("object of mro", "raised", "invalid attribute", "answer = getattr(str.mro()[1], '__subclasses__')"),
    _fails("operator.attrgetter", "raised", "operator cannot be imported", "import operator\n"
           "answer = operator.attrgetter('__class__')(1)"),
    _fails("vars", "raised", "name 'vars' is not defined", "answer = vars(str)"),
    _fails("dir", "raised", "name 'dir' is not defined", "answer = dir(str)"),
    _fails("fullwidth letters", "syntax", "starts with \"_\"", "answer = ()._\uff3fclass_\uff3f"),
    _fails("fullwidth name", "syntax", "starts with \"_\"", "answer = _\uff3fimport__('os')"),
    # Frames
    _fails("gi_frame", "syntax", "restricted name", "answer = (x for x in [1]).gi_frame.f_builtins"),
    _fails("gi_code by getattr", "raised", "restricted name",
           "answer = getattr((x for x in [1]), 'gi_code')"),
    _fails("tb_frame", "syntax", "starts with \"_\"|restricted name",
           "try:\n    1 / 0\nexcept Exception as e:\n    answer = e.__traceback__.tb_frame.f_globals"),
    _fails("frame of a raised generator", "raised", "restricted name",
           "def g():\n    yield 1\nanswer = getattr(getattr(g(), 'gi_frame'), 'f_back')"),
    _harmless("object of an AttributeError", "[]",
              "import json\ntry:\n    json.codecs\nexcept AttributeError as e:\n"
              "    answer = [n for n in ('codecs', 'decoder', 'scanner') if getattr(e.obj, n, None)]"),
    # Builtins, scopes, hooks
    _fails("__builtins__", "syntax", "starts with \"_\"", "answer = __builtins__['eval']('1')"),
    _fails("eval", "syntax", "Eval calls are not allowed", "answer = eval('1')"),
    _fails("exec", "syntax", "Exec calls are not allowed", "exec('answer = 1')"),
    _fails("compile", "raised", "compile", "answer = compile('1', '', 'eval')"),
    _fails("globals", "raised", "globals", "answer = globals()"),
    _fails("builtins through a closure", "syntax", "starts with \"_\"",
           "def f():\n    return len\nanswer = f.__globals__['__builtins__']"),
    _fails("shadowing a guard, positional only", "syntax", "starts with \"_\"",
           "def f(_getattr_, /):\n    return (1).real\nanswer = f(lambda o, n: o)"),
    _fails("shadowing a guard by global", "syntax", "starts with \"_\"|answer",
           "def f():\n    global _write_\n    _write_ = 1\nf()"),
    _fails("walrus to a guard", "syntax", "starts with \"_\"", "answer = (_getattr_ := 1)"),
    _harmless("walrus out of a comprehension", "[1, 2]", "answer = [last := x for x in (1, 2)]"),
    _fails("type as a metaclass", "raised", "name 'type' is not defined",
           "answer = type('X', (), {'__getattr__': 1})"),
    _fails("a class with __del__", "syntax", "classes are not allowed",
           "class X:\n    def __del__(self):\n        pass\nanswer = X()"),
    _fails("a class with __getattr__", "syntax", "classes are not allowed",
           "class X:\n    def __getattr__(self, name):\n        return 1\nanswer = X().a"),
    _fails("decorators", "syntax", "classes are not allowed",
           "@exec\n@input\nclass X:\n    pass\nanswer = 1"),
    _fails("a decorator that is a builtin", "raised", "breakpoint|open|name",
           "@open\ndef path():\n    return '/etc/passwd'\nanswer = path.read()"),
    _fails("class patterns", "syntax", "Match statements are not allowed",
           "match 1:\n    case object(__class__=c):\n        answer = c"),
    _fails("except star", "syntax", "TryStar statements are not allowed",
           "try:\n    pass\nexcept* Exception as e:\n    answer = 1"),
    _fails("async", "syntax", "AsyncFunctionDef statements are not allowed",
           "async def f():\n    pass\nanswer = f().cr_frame"),
    _fails("writing into a module", "raised", "cannot be written to",
           "import math\nmath.pi = 3\nanswer = 1"),
    _fails("del of a builtin's attribute", "raised", "cannot be written to", "del str.upper\nanswer = 1"),
    # Imports and what they would give
    _fails("os", "raised", "os cannot be imported", "import os\nanswer = os.environ"),
    _fails("sys.modules", "raised", "sys cannot be imported", "import sys\nanswer = sys.modules"),
    _fails("from import", "raised", "cannot be imported", "from os import environ\nanswer = environ"),
    _fails("__import__", "syntax", "starts with \"_\"", "answer = __import__('os')"),
    _fails("importlib", "raised", "cannot be imported", "import importlib\nanswer = importlib"),
    _fails("a module's own imports", "raised", "no attribute 'codecs'",
           "import json\nanswer = json.codecs.open('{secret}').read()"),
    _fails("a submodule", "raised", "json.decoder cannot be imported",
           "import json.decoder\nanswer = json"),
    _fails("import star", "syntax", r'"\*" imports are not allowed', "from math import *\nanswer = pi"),
    _fails("ctypes", "raised", "cannot be imported", "import ctypes\nanswer = ctypes.CDLL(None)"),
    _fails("pickle", "raised", "cannot be imported",
           "import pickle\nanswer = pickle.loads(b'cos\\nsystem\\n(Vls\\ntR.')"),
    _fails("socket", "raised", "cannot be imported",
           "import socket\nanswer = socket.create_connection(('127.0.0.1', 80))"),
    _fails("DNS", "raised", "cannot be imported",
           "from socket import gethostbyname\nanswer = gethostbyname('localhost')"),
    _fails("subprocess", "raised", "cannot be imported",
           "import subprocess\nanswer = subprocess.run(['id'])"),
    _fails("threads", "raised", "cannot be imported", "import threading\nanswer = 1"),
    _fails("signal", "raised", "cannot be imported", "import signal\nsignal.alarm(0)\nanswer = 1"),
    _fails("fork bomb", "raised", "cannot be imported", "import os\nwhile True:\n    os.fork()"),
    # Files
    _fails("open", "raised", "name 'open' is not defined", "answer = open('{secret}').read()"),
    _fails("writing a file", "raised", "name 'open' is not defined", "open('{written}', 'w').write('x')"),
    _fails("print into a file", "raised", "name 'open' is not defined",
           "print('x', file=open('{written}', 'w'))"),
    _fails("input", "raised", "name 'input' is not defined", "answer = input()"),
    _fails("breakpoint", "raised|syntax", "breakpoint", "breakpoint()"),
    _fails("a file through a tool's result", "raised", "no attribute|invalid attribute",
           "answer = getattr(look()[0], 'open')('{secret}').read()"),
    _fails("a tool's globals", "syntax", "starts with \"_\"", "answer = look.__globals__['os'].environ"),
    _fails("a tool's closure", "raised", "invalid attribute",
           "answer = getattr(look, '__closure__')[0].cell_contents.sent"),
    _fails("an object as argument of a tool", "raised", "not JSON serializable",
           "answer = look(lambda: 1)"),
    # Too much
    _fails("memory bomb", "memory", "out of memory", "x = [0] * 10\nwhile True:\n    x = x + x"),
    _fails("long string", "memory|raised", "out of memory|too large|MemoryError", "answer = 'x' * 10 ** 12"),
    _fails("long range", "memory", "out of memory", "answer = list(range(10 ** 10))"),
    _fails("CPU loop", "killed|time", "CPU time|stopped after", "while True:\n    pass"),
    _fails("loop that catches all", "killed|time", "CPU time|stopped after",
           "while True:\n    try:\n        while True:\n            1 / 0\n"
           "    except BaseException:\n        pass"),
    _fails("big exponent", "killed|time|memory", "CPU time|stopped after|memory",
           "answer = 9 ** 9 ** 9 % 7"),
    _fails("big integer as text", "raised", "Exceeds the limit", "answer = str(10 ** 5000)"),
    _fails("slow pattern", "killed|time", "CPU time|stopped after",
           "import re\nanswer = re.match('(a+)+$', 'a' * 60 + 'b')"),
    _fails("recursion", "raised", "RecursionError", "def f(n):\n    return f(n + 1)\nanswer = f(0)"),
    _fails("deep literal", "syntax", "too many nested parentheses|RecursionError|MemoryError",
           "answer = " + "[" * 5000 + "]" * 5000),
    _fails("deep operators", "syntax|raised|killed", "Recursion|recursion|MemoryError|status",
           "answer = " + "-" * 9000 + "1"),
    _fails("deep answer", "no-answer", "Circular|recursion|Recursion",
           "x = []\nfor i in range(100000):\n    x = [x]\nanswer = x"),
    _fails("answer that holds itself", "no-answer", "Circular", "answer = []\nanswer.append(answer)"),
    _fails("answer that never ends", "no-answer", "generator|count",
           "import itertools\nanswer = itertools.count()"),
    _harmless("stdout flood", "done", "for i in range(100000):\n    print('x' * 100)\nanswer = 'done'"),
    _harmless("long answer", "x" * 10_000, "answer = 'x' * 1000000"),
    _fails("longer than a message", "protocol|killed", "more than|ended", "answer = 'x' * 3000000"),
    _fails("too many calls", "protocol", "more than 20 calls", "while True:\n    look()"),
    _fails("long argument", "protocol|killed", "more than|ended", "answer = look('x' * 3000000)"),
    # Leaving
    _fails("SystemExit", "raised", "SystemExit", "raise SystemExit(0)"),
    _fails("KeyboardInterrupt", "raised", "KeyboardInterrupt", "raise KeyboardInterrupt"),
    _fails("null byte", "syntax", "null byte", "answer = 1\0"),
    _fails("surrogate", "syntax", "surrogates|encode", "answer = '\ud800'"),
    _fails("long program", "syntax", "20,000 are allowed", "answer = 1\n" * 3000),
    # More of what other sandboxes let out (huggingface/smolagents#2271, run-llama/llama_index#23119,
    # mcp-use/mcp-use#1735)
    _fails("super", "raised", "name 'super' is not defined", "answer = super(int, 1)"),
    _fails("object", "raised", "name 'object' is not defined", "answer = object()"),
    _fails("memoryview", "raised", "name 'memoryview' is not defined", "answer = memoryview(b'abc').obj"),
    _fails("property", "raised", "name 'property' is not defined", "answer = property(lambda s: 1).fget"),
    _fails("setattr", "raised", "name 'setattr' is not defined", "setattr(str, 'upper', 1)\nanswer = 1"),
    _fails("help", "raised", "name 'help' is not defined", "answer = help('modules')"),
    _fails("an attribute within a format specification", "syntax", "starts with \"_\"",
           "answer = f'{1:{().__class__}}'"),
    _fails("an attribute among a lambda's defaults", "syntax", "starts with \"_\"",
           "answer = (lambda x=().__class__: x)()"),
    _fails("operator.methodcaller", "raised", "operator cannot be imported",
           "import operator\nanswer = operator.methodcaller('__class__')(1)"),
    _fails("functools.reduce over getattr", "raised", "functools cannot be imported",
           "import functools\nanswer = functools.reduce(getattr, ['__class__'], 1)"),
    _fails("copy", "raised", "copy cannot be imported", "import copy\nanswer = copy.copy(1)"),
    _fails("a regular expression without end", "killed|time", "CPU time|stopped after",
           "import re\nanswer = re.match('(a+)+$', 'a' * 40 + 'b')"),
    _fails("a number of a million digits", "raised", "4300 digits", "answer = int('9' * 1000000)"),
    _fails("twenty thousand nested generators", "raised", "RecursionError",
           "g = (x for x in range(3))\nfor _ in range(20000):\n    g = (x for x in g)\nanswer = list(g)"),
    _fails("a tool's name taken by global", "raised", "not callable",
           "def f():\n    global look\n    look = 1\nf()\nanswer = look()"),
    _fails("StopIteration", "raised", "StopIteration", "raise StopIteration"),
]  # fmt: skip
