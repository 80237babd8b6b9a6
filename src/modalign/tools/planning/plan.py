"""*Planned* tool use, the survey's "both": the model calls tools, reads results, and continues or answers.

Calls use the model's own format: a local model's chat template, or the ``tools`` of an OpenAI-compatible
request. Reasoning and acting alternate as in ReAct (arXiv 2210.03629).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from modalign.data.records import Media
from modalign.endpoints import Chat, Reply, ToolCall
from modalign.strict_json import loads
from modalign.tools.base import Tool
from modalign.tools.planning.answer import AssistedAnswer, Transcript
from modalign.tools.planning.toolbox import Toolbox

PROMPT = """\
Answer a question about media that you cannot see yourself: call the tools to look at them. Media, by
their place: {media}. When you know enough, reply with the answer alone, as short as the question allows.

Question: {question}"""
NOW = "No more calls. Answer the question now, with the answer alone."


@dataclass
class Planned:
    """Answers by calls that the model plans.

    Args:
        tools: that may be called.
        chat: the language model.
        steps: maximum replies with calls; then it must answer.
        calls: maximum calls per reply; further ones are refused.
        observation: maximum characters of a call's result.
        settings: of each reply: max_tokens, temperature, ...
    """

    tools: Sequence[Tool]
    chat: Chat
    _: KW_ONLY
    steps: int = 6
    calls: int = 4
    observation: int = 4000
    settings: dict[str, Any] = field(default_factory=dict)

    def answer(self, question: str, media: Sequence[Media]) -> AssistedAnswer:
        """Let the model plan, act and observe until it answers.

        Raises:
            UsageError: no tool takes the media, or the language model is not reachable.
        """
        transcript = Transcript(self.chat, self.settings)
        toolbox = Toolbox(self.tools, media, transcript, self.observation)
        prompt = PROMPT.format(media=toolbox.listing(), question=question)
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        schemas = toolbox.schemas()
        for _ in range(self.steps):
            reply = transcript.ask(messages, schemas)
            if reply is None:
                return transcript.end(None)
            if not reply.calls and reply.text.strip():
                return transcript.end(reply.text)
            messages += self._observed(reply, toolbox, transcript)
            if not reply.calls:
                transcript.fail("empty-reply", "neither text nor a call")
                break
        messages.append({"role": "user", "content": NOW})
        reply = transcript.ask(messages)
        if reply is not None and not reply.text.strip():
            transcript.fail("no-answer", "no text after the last step")
        return transcript.end(reply.text if reply else None)

    def _observed(
        self, reply: Reply, toolbox: Toolbox, transcript: Transcript
    ) -> list[dict[str, Any]]:
        """Return the model's turn and an observation for each of its calls."""
        sound = replace(reply, calls=tuple(map(_sound, reply.calls)))
        turns = [sound.as_message()] if reply.calls else []
        for number, call in enumerate(reply.calls):
            if number < self.calls:
                seen = toolbox.observe(call.name, call.arguments)
            else:
                transcript.fail("too-many-calls", f"call {number + 1} of one reply")
                seen = f"error: not called, at most {self.calls} calls at once"
            turns.append(
                {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": seen}
            )
        return turns


def _sound(call: ToolCall) -> ToolCall:
    """Return a call that is valid in the conversation: servers refuse turns with malformed ones."""
    try:
        well_formed = isinstance(loads(call.arguments), dict)
    except ValueError:
        well_formed = False
    return replace(
        call, name=call.name or "malformed", arguments=call.arguments if well_formed else "{}"
    )
