"""Schemas of requests: the supported OpenAI fields, and a few of our own."""

from __future__ import annotations

from operator import getitem
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from modalign.data.modalities import modality_names, modality_of

Token = Annotated[int, Field(ge=0, le=2**31 - 1)]
# What a text may yet become is looked at with every token, on the thread that runs all rows.
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
MOST_TOKENS = 2**31 - 1
Item = TypeVar("Item")
# Errors are looked for up to the first: of 250,000 wrong elements each would cost more than the request.
Many = Annotated[list[Item], Field(fail_fast=True)]
Some = Annotated[list[Item], Field(min_length=1, fail_fast=True)]


class Given(BaseModel):
    """Base of everything a client sends: wrong types and unknown fields are refused, never dropped.

    Empty unknown fields are accepted, because clients send back messages with empty fields.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.keys() <= cls.model_fields.keys():
            return given
        known = cls.model_fields
        return {k: v for k, v in given.items() if k in known or v not in (None, "", [], {})}


class StreamOptions(Given):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(
        None, description="End with a chunk that contains the usage."
    )


class Sampled(Given):
    """Fields of both kinds of completions. `modalign.serving.http.fields` checks further fields."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

    model: str | None = Field(None, description="The name listed by /v1/models.")
    n: Annotated[int, Field(ge=1, le=64)] | None = Field(None, description="Answers per prompt.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0 is greedy; default 1."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = Field(
        None, description="Equal requests with equal seeds get equal answers."
    )
    stop: Stop | Annotated[Many[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = Field(
        None, description="Continue after end tokens up to max_tokens (for benchmarks)."
    )

    @property
    def has_media(self) -> bool:
        """Whether media are to be read before it can be answered."""
        return False

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(Sampled):
    """Text to continue."""

    prompt: str | Some[str] | Some[Token] | Some[Some[Token]]
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = Field(
        None, description="Default 16; 0 with echo scores the prompt."
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        given: Any = self.prompt
        alone = isinstance(given, str) or isinstance(given[0], int)
        prompts: list[str | list[int]] = [given] if alone else given
        return prompts


# --- chat ---------------------------------------------------------------------------------------


class Url(Given):
    """The URL of a medium: a data URL, or an address that the server may fetch from."""

    url: str
    detail: Literal["auto", "high"] | None = Field(
        None, description="Images are always used in full resolution: low is not supported."
    )


class AudioData(Given):
    """A recording; its format is read from its bytes."""

    data: str = Field(description="base64")
    format: str | None = None


class TextPart(Given):
    """Text."""

    type: Literal["text"]
    text: str


class RefusalPart(Given):
    """An assistant's refusal, in a conversation that is sent back."""

    type: Literal["refusal"]
    refusal: str


class InputAudioPart(Given):
    """A recording, as in OpenAI's API."""

    type: Literal["input_audio"]
    input_audio: AudioData


def _to_the_first_error(kind: Any) -> Any:
    """A type whose lists are read up to their first wrong element."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is None or origin is Literal:
        return kind
    if origin is Annotated:
        return Annotated[_to_the_first_error(inner[0]), *inner[1:]]
    read = tuple(map(_to_the_first_error, inner))
    if origin in (Union, UnionType):
        return getitem(Union, read)
    many: Any = Many
    return many[read[0]] if origin is list else origin[read]


def _media_part(modality: str) -> type[Given]:
    """Create the part type of a modality: its value if it may be inline, else its URL."""
    known = modality_of(modality)
    kind, held = f"{modality}_url", Url
    if known.inline is not None:
        kind, held = modality, _to_the_first_error(known.inline.schema)
    fields: dict[str, Any] = {"type": (Literal[kind], ...), kind: (held, ...)}
    return create_model(
        f"{modality.title()}Part", __base__=Given, __doc__=f"{known.words}.".capitalize(), **fields
    )


_PARTS = (TextPart, RefusalPart, InputAudioPart, *map(_media_part, modality_names()))
if TYPE_CHECKING:
    Part = Any
else:
    Part = Annotated[Union[_PARTS], Field(discriminator="type")]  # noqa: UP007 (made from a tuple)


class CalledFunction(Given):
    """A call made by an assistant."""

    name: str
    arguments: str = Field(description="JSON")


class Call(Given):
    """A tool call in a conversation that is sent back."""

    type: Literal["function"] = "function"
    function: CalledFunction
    id: str | None = None


class Turn(Given):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Many[Part] | None = None
    tool_calls: Many[Call] | None = None
    tool_call_id: str | None = None
    name: str | None = Field(None, description="Of the tool, in a tool's turn.")


class Function(Given):
    """A tool that the model may call."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema")


class Tool(Given):
    """A function as a tool."""

    type: Literal["function"]
    function: Function


class ChatRequest(Sampled):
    """A conversation to answer."""

    messages: Some[Turn]
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = Field(
        None, description="Default: up to the model's length."
    )
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[Many[Tool], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = Field(None, description="auto or none.")

    @property
    def has_media(self) -> bool:
        """Whether media are to be read before it can be answered."""
        contents = (turn.content for turn in self.messages if isinstance(turn.content, list))
        return any(part.type not in ("text", "refusal") for content in contents for part in content)
