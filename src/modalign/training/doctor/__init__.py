"""What would go wrong, said before step 0.

``examine`` looks at everything and stops at nothing: files, split, template, supervised tokens, every
method's placeholders, lengths, steps and memory. ``preflight`` is the cheap part of it, run before
every training: it raises on what would end a run, and returns what is only worth a warning.
"""
