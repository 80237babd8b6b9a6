"""Correct single facts of a model by closed-form changes of a few weights, and measure what that did."""
