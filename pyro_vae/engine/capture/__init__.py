"""From a Pyro program to a graph of tensor operations."""
