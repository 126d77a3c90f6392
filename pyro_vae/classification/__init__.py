"""What every distribution of Pyro can be in a VAE, found out by trying."""

from pyro_vae.classification.entry import ROLES, Entry, Parameter
from pyro_vae.classification.table import entry_of, families_table, family_page, python_example, yaml_example
from pyro_vae.classification.verdict import classifications, classify, counts, exported

__all__ = [
    "ROLES",
    "Entry",
    "Parameter",
    "classifications",
    "classify",
    "counts",
    "entry_of",
    "exported",
    "families_table",
    "family_page",
    "python_example",
    "yaml_example",
]
