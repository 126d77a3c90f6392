"""Lets ``python -m pyro_vae`` stand for ``pyro-vae``."""

from pyro_vae.cli import main

main()
