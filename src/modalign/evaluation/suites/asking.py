"""Ask a language model the items of a part; a model with media is asked by text alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, ProcessorMixin

from modalign.data.records import Message, Record, Source
from modalign.errors import ModalignError, first_line
from modalign.evaluation.generation import answer_records
from modalign.evaluation.likelihood import score_options
from modalign.evaluation.rolling import read_texts
from modalign.evaluation.suites.gsm8k import STOPS
from modalign.evaluation.suites.parts import Answer, Part, Passage, Problem, Question
from modalign.lengths import TooLongError, check_length, declared_length
from modalign.models.asking import conversation_of, text_ids, tokenizer_of
from modalign.models.quiet import quietly

Form = Literal["plain", "chat"]
Tell = Callable[[int, int], None] | None


@dataclass(frozen=True)
class Asked:
    """A model that answers a suite.

    Attributes:
        model: any that reads text.
        reader: its tokenizer, or its processor.
        form: prompts as they stand, or in the chat template.
        batch_size: problems answered together.
        max_new_tokens: of a written answer.
    """

    model: Any
    reader: Any
    form: Form = "plain"
    batch_size: int = 16
    max_new_tokens: int = 256

    def answers(self, part: Part, tell: Tell = None) -> list[Answer | None]:
        """Answer every item of a part; None where prompt and answer are longer than the model reads."""
        asked: dict[str, Callable[[Sequence[Any], Any, Tell], list[Answer | None]]] = {
            "options": self._options,
            "written": self._written,
            "read": self._read,
        }
        return asked[part.kind](part.items, self._text_reader(), tell)

    def _text_reader(self) -> Any:
        """Return what turns texts into ids: a tokenizer, without its template for the plain form."""
        tokenizer: Any = tokenizer_of(self.reader)
        if self.form == "chat":
            own = isinstance(self.reader, ProcessorMixin) and tokenizer.chat_template is None
            return self.reader if own else tokenizer
        plain = copy.deepcopy(tokenizer)
        plain.chat_template = None
        return plain

    def _options(self, items: Sequence[Question], reader: Any, tell: Tell) -> list[Answer | None]:
        found: list[Answer | None] = []
        for item in items:
            text = item.prompt if self.form == "plain" else item.asked
            record = _record(item.source, (text,))
            try:
                scores = score_options(self.model, reader, [record], [item.options])[0]
            except TooLongError:
                found.append(None)
            else:
                check_finite([score.loglikelihood for score in scores], item.source)
                found.append(
                    {
                        "sums": [s.loglikelihood for s in scores],
                        "tokens": [s.tokens for s in scores],
                    }
                )
            if tell:
                tell(len(found), len(items))
        return found

    def _written(self, items: Sequence[Problem], reader: Any, tell: Tell) -> list[Answer | None]:
        records = [
            _record(item.source, (item.prompt,) if self.form == "plain" else item.turns)
            for item in items
        ]
        fitting = [place for place, each in enumerate(records) if self._fits(each, reader)]
        found: list[Answer | None] = [None] * len(items)
        said = answer_records(
            self.model,
            reader,
            [records[place] for place in fitting],
            self.max_new_tokens,
            self.batch_size,
            tell,
            stop=STOPS if self.form == "plain" else (),
        )
        for place, text in zip(fitting, said, strict=True):
            found[place] = text
        return found

    def _fits(self, record: Record, reader: Any) -> bool:
        """Whether prompt and longest answer fit: a shorter answer would be another task."""
        if isinstance(reader, ProcessorMixin):
            return True
        ids = text_ids(reader, conversation_of(record, reader))
        try:
            check_length(
                len(ids),
                declared_length(self.model.config),
                str(record.source),
                self.max_new_tokens,
            )
        except TooLongError:
            return False
        return True

    def _read(self, items: Sequence[Passage], reader: Any, tell: Tell) -> list[Answer | None]:
        texts = [item.text for item in items]
        read = read_texts(self.model, tokenizer_of(reader), texts, progress=tell)
        for item, (total, _) in zip(items, read, strict=True):
            check_finite([total], item.source)
        return [[-total, tokens] for total, tokens in read]


def check_finite(values: Sequence[float], source: Source) -> None:
    """Refuse log-likelihoods that are no numbers: a comparison with them would look like a result.

    Raises:
        ModalignError: with the item on which the model failed.
    """
    if not all(map(math.isfinite, values)):
        raise ModalignError(
            f"{source}: the model's log-likelihoods are not finite: its weights or its dtype are broken "
            "(a training that diverged, float16 that overflows)"
        )


def _record(source: Source, turns: Sequence[str]) -> Record:
    roles: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")
    messages = tuple(Message(roles[n % 2], (text,)) for n, text in enumerate(turns))
    return Record(str(source), messages, source)


@contextmanager
def random_weights(asked: Asked, seed: int) -> Iterator[Asked | str]:
    """Give a language model of the same shape with freshly drawn weights, or the reason why there is none."""
    config = asked.model.config.get_text_config(decoder=True)
    weights = next(asked.model.parameters())
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), quietly():
        torch.manual_seed(seed)
        try:
            made = AutoModelForCausalLM.from_config(config, dtype=weights.dtype)
        except (ValueError, TypeError, AttributeError) as error:
            yield first_line(error)
            return
    made = made.to(weights.device).eval()
    yield Asked(
        made, tokenizer_of(asked.reader), asked.form, asked.batch_size, asked.max_new_tokens
    )
