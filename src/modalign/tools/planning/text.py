"""*Natural-language-assisted* tool use: the tools' text replaces the media, followed by the question.

Nothing else is added, as in training and comparison on tool text: a small model knows no other format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from modalign.data.records import Media
from modalign.endpoints import Chat
from modalign.tools.chain import ToolChain
from modalign.tools.planning.answer import AssistedAnswer, Transcript


@dataclass
class TextAssisted:
    """Answers from a chain's text.

    Args:
        chain: tools, template and token budget.
        chat: the language model.
        settings: of its reply: max_tokens, temperature, ...
    """

    chain: ToolChain
    chat: Chat
    settings: dict[str, Any] = field(default_factory=dict)

    def answer(self, question: str, media: Sequence[Media]) -> AssistedAnswer:
        """Describe the media, and ask once.

        Raises:
            UsageError: no tool takes one of the media, or the language model is not reachable.
        """
        transcript = Transcript(self.chat, self.settings)
        before, known = self.chain.cost(), self._problems()
        texts = [self.chain.text(medium) for medium in media]
        after = self.chain.cost()
        transcript.called({"texts": texts}, after.seconds - before.seconds, None)
        transcript.failures.update(self._problems() - known)
        if len(texts) > 1:
            texts = [f"Medium {place}:\n{text}" for place, text in enumerate(texts)]
        prompt = "\n".join([*(text.rstrip("\n") for text in texts), question])
        reply = transcript.ask([{"role": "user", "content": prompt}])
        return transcript.end(reply.text if reply else None)

    def _problems(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for found in self.chain.problems():
            counted[f"tool-{found.kind}"] += found.count
        return counted
