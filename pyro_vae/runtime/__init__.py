"""Settings of the running process: random streams, module modes, precision, Ctrl-C, progress, versions."""
