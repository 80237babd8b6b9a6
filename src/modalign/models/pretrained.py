"""The one road by which configurations, tokenizers, processors and models of others are read.

No code of theirs runs unless the user allowed it, whatever goes wrong is one sentence, and a tokenizer that does
not belong to its model is found before anything is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from modalign.chat_templates import prompt_ids, turn_end_ids
from modalign.errors import DataError, UsageError, first_line
from modalign.models.local import check_within_reach, unpacked
from modalign.models.parts import embedding
from modalign.models.weights import pickle_hint, safetensors_only
from modalign.trust import remote_code_trusted

log = logging.getLogger(__name__)

ADAPTER = "adapter_config.json"


def read_pretrained(
    kind: Any,
    name: Path | str,
    what: str = "model",
    *,
    allow_pickle: bool | None = None,
    **options: Any,
) -> Any:
    """What ``kind.from_pretrained`` finds in a folder, in a GGUF file or on the hub.

    Args:
        kind: one of transformers' Auto classes.
        name: folder, GGUF file or hub name.
        what: what it is, for the message.
        allow_pickle: for weights that the user may allow to be a pickle; whether that was done.
        options: handed on.

    Raises:
        UsageError: it cannot be loaded; the message says why.
    """
    check_within_reach(str(name), what)
    _refuse_adapter(name, what, (Path(name) / ADAPTER).is_file())
    place = unpacked(name)
    if allow_pickle is not None:
        options["use_safetensors"] = safetensors_only(allow_pickle)
    try:
        found = kind.from_pretrained(place, trust_remote_code=remote_code_trusted(), **options)
    except Exception as error:  # a configuration may make transformers raise anything
        raise UsageError(_problem(what, name, error, allow_pickle is not None)) from error
    _refuse_adapter(name, what, getattr(found, "_hf_peft_config_loaded", False))
    return found


def _refuse_adapter(name: Path | str, what: str, holds_one: bool) -> None:
    """Refuse a peft adapter: transformers lays it over the model without a word, whatever its sizes say.

    Raises:
        UsageError: says what to do.
    """
    if holds_one:
        raise UsageError(
            f"the {what} {str(name)!r} is or holds a peft adapter ({ADAPTER}): merge it into its model (peft's "
            "merge_and_unload) and give that folder, or remove the adapter's files"
        )


def _problem(what: str, name: Path | str, error: Exception, may_be_pickle: bool) -> str:
    """Why something cannot be loaded, in one sentence."""
    what = what.removeprefix("the ")
    if "trust_remote_code" in str(error):
        return (
            f"the {what} {str(name)!r} brings Python code of its own, which would have to run: read it, "
            "and give --trust-remote-code to a verb that has it if you trust it"
        )
    hint = pickle_hint(error) if may_be_pickle else ""
    if "safetensors" in str(error):
        hint = hint or "; weights are read from safetensors only"
    return f"the {what} {str(name)!r} cannot be loaded: {first_line(error)}{hint}"


def check_vocabulary(name: Path | str, model: Any, tokenizer: Any) -> None:
    """See that every id that can reach the model, and every special id, has a row in the embedding.

    Special tokens that nothing writes may lie outside: transformers adds some of its own to a tokenizer. An end of
    answers that the model can never say is refused where somebody wrote it, and told where it is a default.

    Args:
        name: of the model, for the message.
        model: with its embedding.
        tokenizer: with one chat template, or none.

    Raises:
        UsageError: one has none.
    """
    config = model.config.get_text_config()
    own = int(embedding(model).weight.shape[0])
    rows = own + (getattr(config, "additional_vocab_size", None) or 0)  # Idefics' second table
    outside = {text: token for text, token in tokenizer.get_vocab().items() if token >= rows}
    if outside:
        special = {each.content for each in tokenizer.added_tokens_decoder.values() if each.special}
        reached = _written_ids(tokenizer)
        outside = {t: token for t, token in outside.items() if t not in special or token in reached}
    if outside:
        text, last = max(outside.items(), key=lambda item: item[1])
        raise UsageError(
            f"the model {str(name)!r}: its tokenizer has ids up to {last} ({text!r}), and its embedding has "
            f"{rows} rows; give it the tokenizer that it was trained with, or an embedding with a row for every id"
        )
    stated = getattr(config, "vocab_size", own)
    if stated != own:
        raise UsageError(
            f"the model {str(name)!r}: its config.json says vocab_size {stated}, and its embedding has {own} "
            "rows; correct the configuration"
        )
    for place, key, token, written in _special_ids(model):
        if token < rows:
            continue
        problem = f"the model {str(name)!r}: {key} {token} of its {place} is outside its embedding of {rows} rows"
        if written:
            raise UsageError(f"{problem}; correct it")
        log.warning("%s, so it never occurs", problem)


def _written_ids(tokenizer: Any) -> set[int]:
    """Special ids that come before a text, into a template or into padding."""
    found = set(tokenizer("a")["input_ids"]) | {tokenizer.pad_token_id, *turn_end_ids(tokenizer)}
    if tokenizer.chat_template is not None:
        with suppress(DataError):  # a template of another form of messages says nothing here
            found |= set(prompt_ids(tokenizer, [{"role": "user", "content": "a"}]))
    return found


def _special_ids(model: Any) -> Iterator[tuple[str, str, int, bool]]:
    """File, key and value of every special id, and whether it matters: it was written, or stands for media."""
    configs = {id(each): each for each in (model.config, model.config.get_text_config())}
    for config in configs.values():
        for key, value in vars(config).items():
            if key.endswith(("_token_id", "_token_index")):
                usual = key in ("bos_token_id", "eos_token_id", "pad_token_id")
                yield from (("config.json", key, token, not usual) for token in _ids(value))
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        written = not getattr(generation, "_from_model_config", False)
        for key, value in vars(generation).items():
            if key.endswith(("_token_id", "suppress_tokens")):
                yield from (
                    ("generation_config.json", key, token, written) for token in _ids(value)
                )


def _ids(value: Any) -> list[int]:
    found = value if isinstance(value, list | tuple) else [value]
    return [each for each in found if isinstance(each, int)]
