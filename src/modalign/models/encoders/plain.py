"""Convert an encoder's configuration for its description."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


def plain_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Convert a configuration to a JSON-able dictionary that AutoConfig can read."""
    values = config.to_diff_dict()
    values["model_type"] = config.model_type
    for key in ("architectures", "transformers_version", "_name_or_path", "dtype"):
        values.pop(key, None)
    return values
