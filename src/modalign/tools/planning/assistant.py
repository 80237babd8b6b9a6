"""From configuration to one of the three ways in which a language model uses tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from modalign.endpoints import Chat
from modalign.errors import UsageError
from modalign.tools.build import build_chain
from modalign.tools.chain import ToolChain
from modalign.tools.planning.code import CodeAssisted
from modalign.tools.planning.plan import Planned
from modalign.tools.planning.text import TextAssisted
from modalign.tools.spec import ChainSpec

Way = Literal["text", "code", "plan"]
WAYS: tuple[Way, ...] = ("text", "code", "plan")
Assistant = TextAssisted | CodeAssisted | Planned
_WORD_CHARACTERS = 4  # of a token, where a server's tokenizer is not at hand


def tokens_about(text: str) -> int:
    """Tokens of a text where nobody can count them: a quarter of its characters."""
    return -(-len(text) // _WORD_CHARACTERS)


def assistant(
    way: str,
    spec: ChainSpec,
    chat: Chat,
    *,
    unsafe: bool = False,
    steps: int = 6,
    repairs: int = 1,
    settings: dict[str, Any] | None = None,
) -> tuple[Assistant, ToolChain]:
    """Return a language model with the tools of a chain, and the chain, which is to be closed.

    Args:
        way: ``text``, ``code`` or ``plan``.
        spec: the tools; their template and budget are the text way's.
        chat: the language model.
        unsafe: of the code way: run programs where no kernel fence holds them.
        steps: of the plan way: replies with calls, at most.
        repairs: of the code way: how often a failing program is given back.
        settings: of each reply: max_tokens, temperature, ...

    Raises:
        UsageError: no such way; no kernel fence; tools that cannot be made.
    """
    if way not in WAYS:
        raise UsageError(f"no way is called {way!r}: choose {', '.join(WAYS)}")
    tokenizer, settings = getattr(chat, "tokenizer", None), settings or {}
    count = (lambda text: len(tokenizer(text)["input_ids"])) if tokenizer else tokens_about
    chain = build_chain(spec, count)
    tools = [use.tool for use in chain.uses]
    make: dict[str, Callable[[], Assistant]] = {
        "text": lambda: TextAssisted(chain, chat, settings),
        "plan": lambda: Planned(tools, chat, steps=steps, settings=settings),
        "code": lambda: CodeAssisted(
            tools, chat, repairs=repairs, unsafe=unsafe, settings=settings
        ),
    }
    try:
        return make[way](), chain
    except BaseException:
        chain.close()
        raise
