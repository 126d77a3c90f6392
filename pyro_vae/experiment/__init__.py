"""Experiment files: data, prior, likelihood, posterior and inference algorithms in validated YAML."""

from pyro_vae.experiment.experiment import Experiment
from pyro_vae.experiment.network import code_allowed
from pyro_vae.experiment.part import spelled_out
from pyro_vae.experiment.to_spec import to_spec
from pyro_vae.experiment.yaml_file import parse_yaml, read_yaml, write_yaml

__all__ = ["Experiment", "code_allowed", "parse_yaml", "read_yaml", "spelled_out", "to_spec", "write_yaml"]
