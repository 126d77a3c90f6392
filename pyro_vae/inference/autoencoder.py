r"""The autoencoder: reconstruction alone."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from pyro_vae.batch import Batch
from pyro_vae.distributions.moments import centre
from pyro_vae.distributions.support import cells_of
from pyro_vae.errors import InputError
from pyro_vae.inference.interface import Inference, Loss, Phase
from pyro_vae.inference.requirements import PATHWISE
from pyro_vae.runtime.modes import evaluating
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class Autoencoder(Inference):
    r"""Reconstruction from the posterior's mean, without a KL: a baseline for the ELBO.

    .. math:: \log p(x|z), \qquad z = E_{q(z|x)}[z]

    No term keeps z close to the prior, and the posterior's scale and the prior are not trained. The ELBO and importance
    sampling by q therefore give no information about the model, and draws from the model do not look like the data. If
    the posterior is pushed through a bijection, z is the image of the unconstrained mean. A posterior without a mean
    in closed form (a flow, a hierarchy) is refused.

    Reference: Rumelhart, Hinton and Williams, "Learning internal representations by error propagation", 1986.

    Example:
        >>> [sorted(phase.moves) for phase in Autoencoder().phases]
        [['likelihood', 'phi']]
    """

    name: ClassVar[str] = "autoencoder"
    needs = PATHWISE
    trains_posterior: ClassVar[bool] = False
    trains_prior: ClassVar[bool] = False
    has_bound: ClassVar[bool] = False

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(self._reconstruct, frozenset({"likelihood", "phi"})),)

    def check(self, vae: LatentVariableModel) -> None:
        """Raises an `InputError` if it cannot train this VAE; the posterior's mean must have a gradient."""
        super().check(vae)
        with evaluating(vae), torch.enable_grad():
            trained = any(parameter.requires_grad for parameter in vae.phi.values())
            q = vae.posterior_given(vae.probe_batch())
            if trained and not _point(q).requires_grad:
                raise InputError(
                    f"Autoencoder: the mean of the posterior `{type(cells_of(q)).__name__}` is known from draws alone, "
                    "so that no gradient reaches the encoder; use a posterior with a mean in closed form, such as "
                    "Normal, or aevb."
                )

    def _reconstruct(self, vae: LatentVariableModel, batch: Batch, carry: Any) -> tuple[Loss, Any]:
        q = vae.posterior_given(batch)
        value = -batch.mean(vae.log_likelihood_of(_point(q), batch)) - vae.log_parameter_prior_per_datum()
        return Loss(value), None


def _point(q: Any) -> Tensor:
    """The mean of q, differentiable; for a q that a bijection maps to its support, the mean before the map."""
    if not isinstance(q, TransformedDistribution):
        return centre(q)
    z = _point(q.base_dist)
    for transform in q.transforms:
        z = transform(z)
    return z
