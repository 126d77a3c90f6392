"""Data sets and files, split, scaled and binarised for a likelihood, with checksums."""

from pyro_vae.datasets.data import Data
from pyro_vae.datasets.data_transform import DataTransform
from pyro_vae.datasets.description import Content, describe
from pyro_vae.datasets.loading import load, names
from pyro_vae.datasets.new_rows import Given, Rows, read_context, read_given, read_rows, read_whole
from pyro_vae.datasets.newsgroups import newsgroups_halves
from pyro_vae.datasets.user_file import read_table

__all__ = [
    "Content",
    "Data",
    "DataTransform",
    "Given",
    "Rows",
    "describe",
    "load",
    "names",
    "newsgroups_halves",
    "read_context",
    "read_given",
    "read_rows",
    "read_table",
    "read_whole",
]
