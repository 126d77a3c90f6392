"""Compilation of a graph: its cost, its cache, and calls of the compiled program."""
