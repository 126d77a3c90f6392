"""The roles that every distribution of Pyro can have in a VAE, found by trials."""

from pyro_vae.vae.families.classify import classifications, classify, counts, exported
from pyro_vae.vae.families.table import entry_of, families_table, family_page, python_example, yaml_example
from pyro_vae.vae.families.verdict import ROLES, Entry, Parameter

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
