"""A language model that works with tools: it reads their text, writes a program, or plans calls."""
