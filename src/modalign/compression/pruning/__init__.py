"""``modalign prune``: remove MLP units, key/value groups and layers, and measure what that costs and saves."""
