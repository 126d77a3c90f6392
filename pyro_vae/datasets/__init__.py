"""Data sets and files, split, scaled and binarised for a likelihood, with checksums."""

from .data import Data
from .errors import DataError
from .loading import load, names
from .table import read_table
from .units import DataTransform

__all__ = ["Data", "DataError", "DataTransform", "load", "names", "read_table"]
