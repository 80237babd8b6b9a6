"""Applications of the rooms below: each holds data loading, a recipe and a report, never a model or a loop."""
