"""Capture of a Pyro program as a graph of tensor operations."""
