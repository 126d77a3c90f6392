"""`CompiledSVI`: Pyro's SVI with compiled steps."""
