"""`fit` with its own keywords and those of `Training` in one mapping."""

from dataclasses import fields

from pyro_vae import Training, fit

SETTINGS = {field.name for field in fields(Training)}


def fit_with(vae, x, inference, **options):
    """Calls `fit`; whatever is a setting of `Training` goes there."""
    settings = {name: options.pop(name) for name in SETTINGS & options.keys()}
    return fit(vae, x, inference, Training(**settings), **options)
