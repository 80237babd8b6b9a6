"""Schemas of answers for /openapi.json, against which clients and tests check the server."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Finish = Literal["stop", "length", "tool_calls"]


class Shown(BaseModel):
    """Anything the server sends."""

    model_config = ConfigDict(extra="forbid")


class Problem(Shown):
    """What was wrong, and what to do."""

    message: str
    type: Literal[
        "invalid_request_error", "authentication_error", "rate_limit_error", "server_error"
    ]
    param: str | None
    code: str | None


class ErrorAnswer(Shown):
    """Every answer that is not a success."""

    error: Problem


class PromptDetails(Shown):
    """The prompt's tokens by kind; those of media under ``image_tokens``, ``audio_tokens``, ..."""

    model_config = ConfigDict(extra="allow")

    cached_tokens: int
    text_tokens: int


class Usage(Shown):
    """Tokens read and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Alternative(Shown):
    """A possible token at a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenScore(Alternative):
    """A token of the answer; log-probabilities are natural logarithms."""

    top_logprobs: list[Alternative]


class ChatScores(Shown):
    """The answer's tokens."""

    content: list[TokenScore]
    refusal: None


class MadeFunction(Shown):
    """A call."""

    name: str
    arguments: str


class MadeCall(Shown):
    """A tool call that the model wrote."""

    id: str
    type: Literal["function"]
    function: MadeFunction


class AnswerMessage(Shown):
    """The model's message; has ``tool_calls`` if it made any."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[MadeCall] = []


class ChatChoice(Shown):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatScores | None
    finish_reason: Finish


class ChatCompletion(Shown):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextScores(Shown):
    """Tokens with their log-probabilities and offsets (characters) in the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Shown):
    """One answer."""

    index: int
    text: str
    logprobs: TextScores | None
    finish_reason: Finish


class Completion(Shown):
    """Continuations of prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Medium(Shown):
    """How media of a modality are told apart before they are sent.

    Attributes:
        name: the modality's.
        words: name of a medium.
        endings: file extensions.
        json_: JSON type of a file with a medium's value; null: media are files.
    """

    name: str
    words: str
    endings: list[str]
    json_: Literal["array", "object"] | None = Field(alias="json")


class Model(Shown):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    modalities: list[str]
    media: list[Medium]


class Models(Shown):
    """The list of models, which has one."""

    object: Literal["list"]
    data: list[Model]


class Health(Shown):
    """The state of the server."""

    status: Literal["ok"]
    model: str
    running: int
    waiting: int
    max_batch: int
    batching: str
    note: str
    reading: str
    reading_note: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route, for its documentation."""
    return {status: {"model": ErrorAnswer, "description": _WORDS[status]} for status in statuses}


_WORDS = {
    400: "A wrong field, a medium that cannot be used, or a prompt that is too long",
    401: "No API key, or a wrong one",
    404: "No such model",
    408: "The body took too long",
    413: "The body is too large",
    415: "The body is not application/json",
    421: "A Host header that does not name this server",
    429: "Too many requests; Retry-After says when to try again",
    500: "The model or the server failed",
    503: "The server is shutting down",
}
