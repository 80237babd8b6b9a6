"""Distillation: a student learns from a teacher's predictions, in stages that are data (``modalign distill``)."""
