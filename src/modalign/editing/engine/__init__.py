"""What every editing method runs on: parts of a model, partial passes, values, keys, statistics, systems."""
