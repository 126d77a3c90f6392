"""Counts the work that a comparison does before it trains."""

from __future__ import annotations

from pyro_vae.comparison import compare
from pyro_vae.experiment import Experiment


def counted(monkeypatch, note=lambda what: what):
    """Returns a list to which what follows adds each load of data, each VAE that is built and each check of values.

    Arguments:
        monkeypatch: Of pytest.
        note: Makes an entry of the list from what is done.
    """
    work = []

    def noted(function, what):
        def call(*arguments, **options):
            work.append(note(what))
            return function(*arguments, **options)

        return call

    for owner, name, what in (
        (Experiment, "load_data", "data are loaded"),
        (Experiment, "build", "a VAE is built"),
        (compare, "check_values", "values are checked"),
    ):
        monkeypatch.setattr(owner, name, noted(getattr(owner, name), what))
    return work
