"""Chat templates for media that render the same ids in training and inference.

Training renders conversations whose media are already placeholder text. A processor gets parts such as
``{"type": "image"}``, which most language models' templates cannot render; so a template is wrapped, not
rewritten, and works for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from modalign.chat_templates import rendered
from modalign.data.modalities import modality_of

# Rebuilds `messages` with string contents, then the original template runs on them. The last block
# ends without a dash and before a newline that the renderer drops (trim_blocks), so that white
# space at the start of the original template keeps its meaning.
_PRELUDE = """\
{#- parts of a message become text, in reading order -#}
{%- set flat = namespace(messages=[], text='') -%}
{%- for message in messages -%}
{%- if message['content'] is defined and message['content'] is not string \
and message['content'] is iterable -%}
{%- set flat.text = '' -%}
{%- for part in message['content'] -%}
{%- if part is string -%}
{%- set flat.text = flat.text + part -%}
{%- elif part['type'] == 'text' -%}
{%- set flat.text = flat.text + part['text'] -%}
{%- elif part['type'] in MARKS -%}
{%- set flat.text = flat.text + MARKS[part['type']] -%}
{%- else -%}
{{- raise_exception('this model takes text and NAMES, not ' + part['type']) -}}
{%- endif -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [dict(message, content=flat.text)] -%}
{%- else -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages %}
"""


IMAGES: Mapping[str, str] = {"image": "<image>"}


def multimodal_template(template: str, marks: Mapping[str, str] = IMAGES) -> str:
    """Wrap a chat template so that it also renders media parts (``{"type": "image"}``) and text parts.

    Parts become text in reading order, a medium its placeholder; messages whose content is a string
    are rendered as before, generation marks are kept. Wrapping twice changes nothing.

    Args:
        template: the language model's.
        marks: modality -> placeholder text.
    """
    kinds = {kind: token for m, token in marks.items() for kind in modality_of(m).part_types}
    table = ", ".join(f"{_quoted(kind)}: {_quoted(token)}" for kind, token in kinds.items())
    names = " and ".join(f"{m}s" if m in ("image", "video") else m for m in marks) or "nothing else"
    prelude = _PRELUDE.replace("MARKS", f"{{{table}}}").replace("NAMES", names)
    return template if template.startswith(prelude) else prelude + template


def _quoted(text: str) -> str:
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def adds_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer adds special tokens around a text."""
    return bool(
        tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]
    )


def let_template_add_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the chat template the only one that adds special tokens.

    Training tokenises the rendered template unchanged; a processor lets the tokenizer add its own
    tokens, unless the text begins with one. Without this the two could differ in the first id.
    """
    text = rendered(tokenizer, [{"role": "user", "content": "q"}])
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    if begins or not adds_tokens(tokenizer):
        return
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    for name in ("add_bos_token", "add_eos_token"):
        if name in tokenizer.init_kwargs or getattr(tokenizer, name, False):
            setattr(tokenizer, name, False)
            tokenizer.init_kwargs[name] = False
    if backend is not None and adds_tokens(tokenizer):
        backend.post_processor = processors.TemplateProcessing(
            single="$A:0", pair="$A:0 $B:1", special_tokens=[]
        )
