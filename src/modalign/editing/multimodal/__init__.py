"""Closed-form editing of models that read pictures: rewriting rows and key statistics."""
