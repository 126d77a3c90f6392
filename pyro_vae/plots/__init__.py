"""Plots of a trained model and of its training, by matplotlib, in the style that is set there."""

from pyro_vae.plots.curves import plot_curves
from pyro_vae.plots.latent_map import plot_latent_map
from pyro_vae.plots.steps import plot_interpolation, plot_traversal

__all__ = ["plot_curves", "plot_interpolation", "plot_latent_map", "plot_traversal"]
