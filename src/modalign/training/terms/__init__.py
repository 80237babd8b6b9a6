"""The objective terms that come with modalign, a file per subject."""
