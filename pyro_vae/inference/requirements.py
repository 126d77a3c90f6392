r"""Requirements of algorithms on a VAE; each raises an `InputError` that names an algorithm without the requirement."""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import TorchDistribution

from pyro_vae.distributions.enumeration import latent_values
from pyro_vae.distributions.kl import kl_of_dimensions, require_closed_form
from pyro_vae.distributions.pushed import Pushed
from pyro_vae.errors import InputError
from pyro_vae.inference.latents import Latents
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel
from pyro_vae.vae.part import needs_posterior
from pyro_vae.vae.vae import VAE


def reparameterizable(algorithm: str, vae: LatentVariableModel) -> None:
    """Gradients pass through the posterior's draws."""
    q = _posterior(vae)
    if not q.has_rsample:
        raise InputError(
            f"{algorithm}: needs a reparameterizable posterior, and `{q}` is not; use score-function, rws or "
            "wake-sleep, which only need its density, enumeration for few values of z, or a posterior with rsample."
        )


def differentiable_likelihood(algorithm: str, vae: LatentVariableModel) -> None:
    """Gradients pass through the likelihood to z."""
    batch = vae.probe_batch()
    with evaluating(vae), isolated(0), torch.enable_grad():
        z = vae.posterior_given(batch).sample().detach()
        if not z.is_floating_point():
            return
        with pyro.validation_enabled(False):  # zeros may lie outside the support
            value = vae.log_likelihood_of(z.requires_grad_(), batch)
        gradient = torch.autograd.grad(value.sum(), z, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise InputError(
            f"{algorithm}: needs a likelihood whose log-density is differentiable in z, and no gradient reaches z; use "
            "score-function, rws or wake-sleep, or a decoder without detach()."
        )


def trainable_draws(algorithm: str, vae: LatentVariableModel) -> None:
    """Gradients pass through the prior's draws to whatever the prior is made of, as far as this is trained."""
    with evaluating(vae), isolated(0), torch.enable_grad():
        p = vae.prior_given(vae.probe_batch())
        if p.has_rsample:
            return
        z = p.sample()
        if z.is_floating_point() and not p.log_prob(z.detach()).requires_grad:
            return  # nothing in it is trained
    raise InputError(
        f"{algorithm}: compares draws from the prior, and no gradient passes through draws from "
        f"`{type(getattr(vae, 'prior', p)).__name__}` to what is trained in it; use a prior with rsample, such as a "
        "Mixture or a VampPrior of Normals, or fix the prior's parameters, or use aevb, which needs only its density."
    )


def unshared(algorithm: str, vae: LatentVariableModel) -> None:
    """Prior and likelihood share no parameters with the posterior."""
    if isinstance(vae, VAE) and needs_posterior(vae.prior):
        raise InputError(
            f"{algorithm}: the prior `{type(vae.prior).__name__}` contains the posterior, so that neither can be "
            "trained alone; use aevb, or a Mixture or Flow as the prior."
        )
    for part, name in vae.shared:
        raise InputError(
            f"{algorithm}: the {part} shares `{name}` with the posterior, so neither can be trained alone; use aevb."
        )
    with evaluating(vae), isolated(0), torch.enable_grad():
        q = vae.posterior_given(vae.probe_batch())
        moved = isinstance(q, Pushed) and q.constrain(torch.zeros_like(q.base_dist.sample())).requires_grad
    if moved:
        raise InputError(
            f"{algorithm}: the posterior is mapped to the prior's support, which depends on the prior's parameters, so "
            "training these changes the posterior too; use aevb, or fix the parameters that bound the support."
        )


def movable_latents(algorithm: str, vae: LatentVariableModel) -> None:
    """Latents are continuous, on a support that a known bijection maps to."""
    Latents(vae, vae.probe_batch(), algorithm)


def enumerable_latents(algorithm: str, vae: LatentVariableModel) -> None:
    """Latents have so few values that they can be summed over."""
    latent_values(_posterior(vae), algorithm)


def closed_form_kl(algorithm: str, vae: LatentVariableModel) -> None:
    """KL(q || p) has a closed form."""
    batch = vae.probe_batch()
    with torch.no_grad(), evaluating(vae), isolated(0):
        q = vae.posterior_given(batch)
        require_closed_form(q, vae.prior_given(batch), q.sample((1,)))


def independent_latents(algorithm: str, vae: LatentVariableModel) -> None:
    """Prior and posterior factorise over the latent dimensions."""
    batch = vae.probe_batch()
    with torch.no_grad(), evaluating(vae), isolated(0):
        q = vae.posterior_given(batch)
        try:
            kl_of_dimensions(q, vae.prior_given(batch), q.sample((1,)))
        except InputError as error:
            raise InputError(f"{algorithm}: {error} Use beta-vae, which weighs the KL as a whole.") from None


def declared_size(algorithm: str, vae: LatentVariableModel) -> None:
    """The VAE knows the number of training data."""
    if vae.size is None:
        raise InputError(
            f"{algorithm}: weighs the parameters' KL against the number of data; declare the VAE with size=N."
        )


def no_parameter_prior(algorithm: str, vae: LatentVariableModel) -> None:
    """The VAE has no prior over parameters."""
    if vae.parameter_prior is not None:
        raise InputError(
            f"{algorithm}: has its own prior over the generative parameters (`prior_scale`); declare the VAE "
            "without parameter_prior, or use aevb, which finds the MAP estimate."
        )


def labels_as_context(algorithm: str, vae: LatentVariableModel) -> None:
    """The VAE is conditional on one-hot labels, as far as the number of covariates tells."""
    if vae.context_features < 2:
        raise InputError(
            f"{algorithm}: needs a VAE whose context is a one-hot label, and this one has context_features="
            f"{vae.context_features}; declare it with context_features=C, the number of labels (in an experiment file "
            "`data: {name: digits, context: labels}`), or use aevb, which needs no labels."
        )


# Gradients pass from log p(x|z) through z to phi.
PATHWISE = (reparameterizable, differentiable_likelihood)


def _posterior(vae: LatentVariableModel) -> TorchDistribution:
    with evaluating(vae), torch.no_grad():  # no batch statistics of zeros
        return vae.posterior_given(vae.probe_batch())
