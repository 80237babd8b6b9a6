"""*Code-assisted* tool use: the model writes a short program that calls the tools, which is then run.

Loops, counting and comparing are done by the program, not the model (ViperGPT, arXiv 2303.08128). A failing
program is returned with its error, a limited number of times; it runs in :mod:`modalign.tools.sandbox`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any

from modalign.data.records import Media
from modalign.endpoints import Chat
from modalign.tools.base import Tool
from modalign.tools.planning.answer import AssistedAnswer, Step, Transcript
from modalign.tools.planning.toolbox import Toolbox
from modalign.tools.sandbox.limits import Limits
from modalign.tools.sandbox.run import Ran, fence_for, run_program

PROMPT = """\
Answer a question about media that you cannot see yourself. Write a short Python program that finds
the answer with these functions:

{signatures}

Media, by their place: {media}.
The program must set the variable `answer` to the answer, a short text. It may import only math, re, json,
itertools, collections and statistics; it has no files, no network and no classes.
Reply with one block: ```python ... ```

Question: {question}"""

REPAIR = """\
The program failed: {message}
{output}Write the whole corrected program, in one ```python block."""

NO_PROGRAM = "there was no ```python block"
_FENCE = "```"
_LABELS = {"", "python", "python3", "py"}


@dataclass
class CodeAssisted:
    """Answers by programs.

    Args:
        tools: that programs may call.
        chat: the language model.
        limits: of each program.
        repairs: how often a failing program is returned to the model.
        unsafe: run programs without a kernel fence if the machine has none.
        settings: of each reply: max_tokens, temperature, ...

    Raises:
        UsageError: no fence, and ``unsafe`` was not given.
    """

    tools: Sequence[Tool]
    chat: Chat
    limits: Limits = field(default_factory=Limits)
    _: KW_ONLY
    repairs: int = 1
    unsafe: InitVar[bool] = False
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self, unsafe: bool) -> None:
        self.fence = fence_for(unsafe)

    def answer(self, question: str, media: Sequence[Media]) -> AssistedAnswer:
        """Let the model write a program, run it, and have it repaired if it fails.

        Raises:
            UsageError: no tool takes the media, or the language model is not reachable.
        """
        transcript = Transcript(self.chat, self.settings)
        toolbox = Toolbox(self.tools, media, transcript)
        prompt = PROMPT.format(
            signatures=toolbox.signatures(), media=toolbox.listing(), question=question
        )
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        for _ in range(1 + self.repairs):
            reply = transcript.ask(messages)
            if reply is None:
                break
            program = first_block(reply.text)
            if program is None:
                transcript.fail("no-program", NO_PROGRAM)
                message, output = NO_PROGRAM, ""
            else:
                ran = self._run(program, toolbox, transcript)
                if ran.answer is not None:
                    return transcript.end(ran.answer)
                message = ran.message
                output = f"It had printed:\n{ran.output[:1000]}\n" if ran.output else ""
            wrong = REPAIR.format(message=message, output=output)
            messages += [
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": wrong},
            ]
        return transcript.end(None)

    def _run(self, program: str, toolbox: Toolbox, transcript: Transcript) -> Ran:
        ran = run_program(program, toolbox.functions(), self.limits, fence=self.fence)
        told = ("answer", "output", "kind", "message", "fence")
        content = {"program": program} | {name: getattr(ran, name) for name in told}
        transcript.steps.append(Step("program", content, ran.seconds))
        if ran.kind:
            transcript.failures[f"program-{ran.kind}"] += 1
        return ran


def first_block(text: str) -> str | None:
    """Return the first fenced block of Python (or without a language); an unclosed one extends to the end."""
    label, block = None, list[str]()
    for line in text.splitlines():
        fenced = line.strip().startswith(_FENCE)
        if label is None and fenced:
            label = line.strip().removeprefix(_FENCE).strip().lower()
        elif fenced and label in _LABELS:
            break
        elif fenced:
            label, block = None, []
        elif label is not None:
            block.append(line)
    program = "\n".join(block)
    return program if label in _LABELS and program.strip() else None
