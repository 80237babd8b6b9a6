"""modalign's objective terms, a file per subject."""
