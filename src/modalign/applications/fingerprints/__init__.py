"""``modalign app fingerprint``: which model wrote texts, or that it cannot be told."""
