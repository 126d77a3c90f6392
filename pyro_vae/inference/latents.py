r"""The latents of a VAE as the variables of an HMC sampler."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor
from torch.distributions.transforms import identity_transform

from pyro_vae.batch import Batch
from pyro_vae.distributions.simplex import bijection_onto
from pyro_vae.distributions.support import cells_of, support_of
from pyro_vae.errors import InputError
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class Latents:
    r"""The latents u of a batch in unconstrained space, z = T(u), with the densities that a sampler needs.

    .. math:: \log p(u) = \log p(z) + \log |\det J_T(u)|, \qquad T = \texttt{bijection\_onto}(\text{support of } p(z))

    All methods map u of shape ``(..., B, *shape)`` to ``(..., B)``, in nats, and are differentiable in u.

    Arguments:
        vae: The VAE.
        batch: A ready batch, as `VAE.check` returns it.
        caller: Name at the start of error messages.

    Raises:
        InputError: For discrete latents, and for a support onto which no bijection is known.

    Reference: Kucukelbir et al., "Automatic differentiation variational inference", 2017, section 2.3.
    """

    def __init__(self, vae: LatentVariableModel, batch: Batch, caller: str = "HMC") -> None:
        self.vae, self.batch = vae, batch
        with pyro.validation_enabled(False):  # the sampler rejects positions that overflow
            self.prior = vae.prior_given(self.batch)
        family = type(cells_of(self.prior)).__name__
        if self.prior.support.is_discrete:
            raise InputError(
                f"{caller}: Hamiltonian Monte Carlo needs the gradient in z, and the prior `{family}` is discrete; use "
                "rws, wake-sleep or score-function to train, and log_marginal to evaluate."
            )
        try:
            self.transform = bijection_onto(support_of(self.prior))
        except NotImplementedError:
            raise InputError(
                f"{caller}: no bijection onto the support {self.prior.support} of the prior `{family}` is known, so "
                "that its latents cannot be moved; use aevb to train, and log_marginal to evaluate."
            ) from None
        self.shape = self.transform.inverse_shape(vae.latent_shape)

    def constrain(self, u: Tensor) -> Tensor:
        """Returns z = T(u)."""
        z: Tensor = self.transform(u)
        return z

    def unconstrain(self, z: Tensor) -> Tensor:
        """Returns u with T(u) = z."""
        u: Tensor = self.transform.inv(z)
        return u

    def log_jacobian(self, u: Tensor) -> Tensor:
        """Returns log |det dz/du|, shape ``(..., B)``."""
        if self.transform is identity_transform:
            return u.new_zeros(())
        terms = self.transform.log_abs_det_jacobian(u, self.constrain(u))
        return terms.flatten(-event).sum(-1) if (event := terms.dim() - (u.dim() - len(self.shape))) else terms

    def log_prior(self, u: Tensor) -> Tensor:
        """Returns log p(u)."""
        return self.prior.log_prob(self.constrain(u)) + self.log_jacobian(u)

    def log_likelihood(self, u: Tensor) -> Tensor:
        """Returns log p(x|z) at z = T(u)."""
        return self.vae.log_likelihood_of(self.constrain(u), self.batch)

    def log_joint(self, u: Tensor) -> Tensor:
        """Returns log p(x, u), whose normalised density is the exact posterior of u."""
        return self.vae.log_joint_of(self.constrain(u), self.batch, self.prior) + self.log_jacobian(u)

    def log_posterior(self, u: Tensor) -> Tensor:
        """Returns log q(u|x), the approximate posterior's density of u."""
        return self.vae.posterior_given(self.batch).log_prob(self.constrain(u)) + self.log_jacobian(u)

    @torch.no_grad()
    def draw_prior(self, n: int) -> Tensor:
        """Returns n draws from the prior for each datum, shape ``(n, B, *shape)``."""
        shape = (n,) if self.prior.batch_shape else (n, self.batch.size)
        return self.unconstrain(self.prior.sample(shape))

    @torch.no_grad()
    def draw_posterior(self, n: int) -> Tensor:
        """Returns n draws from q(u|x) for each datum, shape ``(n, B, *shape)``."""
        return self.unconstrain(self.vae.posterior_given(self.batch).sample((n,)))
