"""A language model that works with tools: it reads their text, writes a program, or plans calls."""

from modalign.tools.planning.answer import Answer, Spent, Step
from modalign.tools.planning.code import CodeAssisted
from modalign.tools.planning.plan import Planned
from modalign.tools.planning.text import TextAssisted

__all__ = ["Answer", "CodeAssisted", "Planned", "Spent", "Step", "TextAssisted"]
