"""Programs that a language model wrote, run where they can do nothing but compute and ask tools."""
