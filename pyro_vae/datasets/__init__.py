"""Data sets and files, split, scaled and binarised for a likelihood, with checksums."""

from pyro_vae.datasets.data import Data
from pyro_vae.datasets.errors import DataError
from pyro_vae.datasets.loading import load, names
from pyro_vae.datasets.table import read_table
from pyro_vae.datasets.units import DataTransform

__all__ = ["Data", "DataError", "DataTransform", "load", "names", "read_table"]
