"""Encoders: turn a signal into features (N, d) with a mask and, if it has one, a grid."""
