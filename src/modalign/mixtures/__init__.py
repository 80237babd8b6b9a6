"""Data and model together: pools of data judged by training on them, mixtures ranked by merged experts."""
