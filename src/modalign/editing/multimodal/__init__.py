"""Closed-form editing of models that take pictures: rewriting rows, key statistics, measures."""
