"""The process while something runs: random streams, module modes, precision, Ctrl-C, progress, versions."""
