"""Stages, objective terms, budgets, the trainer and its checkpoints."""
