"""From a graph to a compiled program: what it costs, where it is kept, and how it is called."""
