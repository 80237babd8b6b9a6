"""Build one of the three ways in which a language model uses tools."""

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
_WORD_CHARACTERS = 4  # characters per token, if a server's tokenizer is unknown


def tokens_about(text: str) -> int:
    """Estimate the tokens of a text as a quarter of its characters."""
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
    """Return a language model with the tools of a chain, and the chain, which the caller must close.

    Args:
        way: ``text``, ``code`` or ``plan``.
        spec: the tools; template and budget are only used by ``text``.
        chat: the language model.
        unsafe: for ``code``: run programs even without a kernel fence.
        steps: for ``plan``: maximum replies with calls.
        repairs: for ``code``: how often a failing program is returned to the model.
        settings: of each reply: max_tokens, temperature, ...

    Raises:
        UsageError: an unknown way, no kernel fence, or tools that cannot be built.
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
