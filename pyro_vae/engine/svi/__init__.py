"""`CompiledSVI`: Pyro's own SVI at the speed of compiled programs."""
