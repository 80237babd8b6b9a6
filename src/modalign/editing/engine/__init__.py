"""What every editing method uses: a model's parts, partial passes, values, keys, statistics and solvers."""
