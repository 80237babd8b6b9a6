"""Benchmarks on pretrained models that registry packages carry: see ``python -m bench.real --help``."""
