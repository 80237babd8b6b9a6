"""Plan, run, statistics, recommendation, report: compare methods under one budget."""
