"""Run programs of a language model where they can only compute and call tools."""
