"""The name of the key-value cache in transformers.

``past_key_values`` up to 5.23, ``cache`` from 5.24 on, as an argument of ``forward`` and in its output. This
file is copied into exported models, so that they load with either.
"""

from __future__ import annotations

from dataclasses import fields

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = next(
    field.name
    for field in fields(CausalLMOutputWithPast)
    if field.name in ("cache", "past_key_values")
)
