"""Fields of OpenAI's API and of compatible servers that change nothing here or are not supported.

A field that would change the answer but is not implemented is refused by name, because an answer that silently
ignores it would be wrong.
"""

from __future__ import annotations

from typing import Any

from modalign.errors import meant
from modalign.serving.http.errors import ApiError, refused
from modalign.serving.http.schemas import Sampled

# For bookkeeping, other servers' scheduling, or the way chunks are sent.
HARMLESS = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        "priority",
        "request_id",
    ]
)

# Values without effect (like null); every other value is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "modalities": (["text"],),
    "audio": (),
    "functions": ([],),
    "function_call": ("none",),
    "parallel_tool_calls": (True,),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "echo": (False,),
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "early_stopping": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "prompt_logprobs": (),
}


def refuse_unsupported(request: Sampled) -> None:
    """Check the fields that the schema does not list.

    Raises:
        ApiError: one of them would change the answer, or is unknown.
    """
    for name, value in (request.model_extra or {}).items():
        if value is None or name in HARMLESS:
            continue
        if name == "best_of":
            if value != (request.n or 1):
                raise _unsupported(name, value, (request.n or 1,))
        elif name not in NEUTRAL:
            hint = meant(name[:100], [*type(request).model_fields, *NEUTRAL, *HARMLESS])
            said = f"unknown parameter: {hint or 'leave it out'}"
            raise refused(name[:100], said, "unknown_parameter")
        elif value not in NEUTRAL[name]:
            raise _unsupported(name, value, NEUTRAL[name])


def further_fields(properties: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the JSON schema of these fields, and of the only model name."""
    harmless: dict[str, Any] = {name: {"description": "Changes nothing."} for name in HARMLESS}
    neutral = {
        name: {"enum": [*values, None], "description": "Other values are not supported."}
        for name, values in NEUTRAL.items()
        if name not in properties
    }
    named = {"model": properties["model"] | {"enum": [model, None]}}
    best_of = {"best_of": {"type": ["integer", "null"], "description": "As many as n."}}
    given = properties | named | best_of | dict(sorted((harmless | neutral).items()))
    return {"properties": given, "additionalProperties": False}


def _unsupported(name: str, value: Any, neutral: tuple[Any, ...]) -> ApiError:
    others = f", or give {neutral[0]!r}" if neutral else ""
    return refused(
        name, f"{str(value)[:60]} is not supported: remove it{others}", "unsupported_value"
    )
