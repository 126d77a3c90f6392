r"""Any Pyro model and guide, under the protocol that a VAE has."""

from pyro_vae.program.auto_guide import auto_guide
from pyro_vae.program.program import Program

__all__ = ["Program", "auto_guide"]
