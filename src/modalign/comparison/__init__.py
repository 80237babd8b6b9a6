"""Compare methods under one budget: plan, run, statistics, recommendation and report."""
