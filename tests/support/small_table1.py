"""The benchmark `iwae_table1` in miniature."""

from __future__ import annotations


def small(benchmark, put):
    put(benchmark, "PIXELS", 64)
    put(benchmark, "FILES", {"dynamic": "digits", "fixed": "digits"})
    put(benchmark, "CHECKPOINT_SECONDS", 0.0)
