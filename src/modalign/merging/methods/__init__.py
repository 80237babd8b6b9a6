"""modalign's merge methods, one small function a file; see :mod:`modalign.merging.registry`."""
