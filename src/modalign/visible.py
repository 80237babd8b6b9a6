"""Text of files, models and programs as a terminal may show it."""

from __future__ import annotations

import re

# All controls but tab and line break, DEL, C1, and what turns the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with controls written out: an escape sequence is read, not carried out.

    ``\\u001b`` and the like are also what JSON writes for them, so that JSON stays what it was.
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))
