"""Find problems before step 0.

``examine`` checks everything without stopping: files, split, template, supervised tokens, every method's
placeholders, lengths, steps and memory. ``preflight`` is the quick part, run before every training: it
raises on what would end a run, and returns what is only worth a warning.
"""
