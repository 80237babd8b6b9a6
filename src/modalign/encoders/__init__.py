"""Encoders: a signal becomes features (N, d) with a mask and, where it has one, a grid."""
