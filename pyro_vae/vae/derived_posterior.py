r"""The posterior that follows from a prior's support: a Normal in unconstrained space, pushed onto the support."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import Transform, identity_transform

from pyro_vae.distributions.protocol import posterior_family_of
from pyro_vae.distributions.pushed import Pushed
from pyro_vae.distributions.simplex import bijection_onto
from pyro_vae.distributions.support import cells_of, is_real, support_of
from pyro_vae.errors import InputError
from pyro_vae.networks.mlp import MLP, mlp
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.hierarchy import HierarchicalDistribution
from pyro_vae.vae.part import needs_posterior, network_of


class Pushforward(nn.Module):
    r"""A distribution in unconstrained space, pushed through a bijection onto a prior's support.

    .. math:: z = T(u), \quad u \sim q(u|x), \qquad \log q(z|x) = \log q(u|x) - \log |\det J_T(u)|

    Arguments:
        base: Module whose ``forward(context)`` returns the distribution of u.
        prior: Module that returns the prior; T is `bijection_onto` the prior's support. It is not a submodule: its
            parameters are not parameters of this module.
        context_features: Number of covariates, the last features of the context, which the prior receives.

    Reference: Kucukelbir et al., "Automatic differentiation variational inference", 2017, section 2.3.
    """

    def __init__(self, base: nn.Module, prior: nn.Module, context_features: int = 0) -> None:
        super().__init__()
        self.base, self.context_features = base, context_features
        self.__dict__["_prior"] = prior  # not a submodule

    def forward(self, context: Tensor) -> TorchDistribution:
        """Returns q(z|x) given a context of shape ``(..., C)``."""
        given = context[..., context.shape[-1] - self.context_features :]
        prior = self.__dict__["_prior"](*([given] if self.context_features else []))
        return Pushed(self.base(context), [bijection_onto(support_of(prior))])


def mirrored(likelihood: nn.Module, in_features: int) -> MLP:
    """Returns an encoder with the decoder's hidden layers in reverse; one layer of 200 if the decoder is no `MLP`."""
    decoder = network_of(likelihood)
    if isinstance(decoder, MLP):
        return mlp(in_features, *reversed(decoder.hidden), activation=decoder.activation)
    return mlp(in_features, 200)


def derive_posterior(prior: nn.Module, encoder: nn.Module, context_features: int = 0) -> nn.Module:
    """Returns the posterior for a prior: a diagonal Normal, pushed onto the prior's support where that is bounded.

    Arguments:
        prior: Module that returns the prior.
        encoder: Network from the data (and context) to features.
        context_features: Size of the context; 0 where the prior receives none.

    Raises:
        InputError: For a discrete prior, and for one whose density does not integrate to 1 over the support that
            it declares.
    """
    like = next((t for t in (*prior.parameters(), *prior.buffers()) if t.is_floating_point()), torch.empty(()))
    p = prior(*([like.new_zeros(1, context_features)] if context_features else []))
    family, advice = type(cells_of(p)).__name__, remedy(p)
    if p.support.is_discrete:
        raise InputError(f"VAE: no posterior follows from the discrete prior `{family}`; {advice}.")
    try:
        transform = bijection_onto(support_of(p))
    except NotImplementedError:
        raise InputError(
            f"VAE: no bijection onto the support {p.support} of the prior `{family}` is known; {advice}."
        ) from None
    on_the_line = _is_identity(transform)
    if on_the_line and not vanishes_at_infinity(p):
        raise InputError(
            f"VAE: the density of the prior `{family}` does not integrate to 1 over the support that it declares "
            f"({p.support}), so a Normal posterior would give an ELBO above log p(x); {advice}."
        )
    base = Conditional(dist.Normal, transform.inverse_shape(p.event_shape), given=encoder)
    return base if on_the_line else Pushforward(base, prior, context_features)


def onto_support(
    posterior: nn.Module, q: TorchDistribution, prior: nn.Module, p: TorchDistribution, context_features: int = 0
) -> nn.Module:
    """Returns the posterior, pushed by a bijection onto the prior's support if it fits the prior only then.

    Arguments:
        posterior: Module that returns q(z|x).
        q: Distribution that ``posterior`` returned.
        prior: Module that returns the prior.
        p: Distribution that ``prior`` returned.
        context_features: Size of the context; 0 where the prior receives none.

    Raises:
        InputError: For a posterior over the real space with a prior whose density does not integrate to 1 there.
    """
    with evaluating(nn.ModuleList([posterior, prior])):
        return _onto_support(posterior, q, prior, p, context_features)


def _onto_support(
    posterior: nn.Module, q: TorchDistribution, prior: nn.Module, p: TorchDistribution, context_features: int
) -> nn.Module:
    # Torch's bijection onto positive numbers ends in an affine step, so the support of a pushed q seems to be real.
    if p.support.is_discrete or isinstance(q, Pushed) or not is_real(q.support):
        return posterior
    try:
        transform = bijection_onto(support_of(p))
    except NotImplementedError:
        if posterior_family_of(cells_of(p)) is None:
            return posterior
        raise InputError(
            f"VAE: the posterior `{type(cells_of(q)).__name__}` is over the real space, and no bijection takes it onto "
            f"the support {p.support} of the prior `{type(cells_of(p)).__name__}`; {remedy(p)}."
        ) from None
    if not _is_identity(transform):
        fits = transform.inverse_shape(p.event_shape) == q.event_shape
        return Pushforward(posterior, prior, context_features) if fits else posterior
    if not vanishes_at_infinity(p) and vanishes_at_infinity(q):
        raise InputError(
            f"VAE: the density of the prior `{type(cells_of(p)).__name__}` does not integrate to 1 over the support "
            f"that it declares ({p.support}), so the posterior `{type(cells_of(q)).__name__}` would give an ELBO above "
            f"log p(x); {remedy(p)}."
        )
    return posterior


def remedy(p: TorchDistribution) -> str:
    """Returns advice on the posterior to pass if none follows from the prior.

    Its family is the prior's ``posterior_family``, else the prior's own family; for a mixture, that of the components.
    """
    if isinstance(p, HierarchicalDistribution):
        return "pass a posterior whose layers have the prior's supports"
    cells = cells_of(p)
    while isinstance(cells, dist.MixtureSameFamily):
        cells = cells_of(cells.component_distribution)
    named = posterior_family_of(cells)
    family = f"dist.{type(cells).__name__}" if named is None else named.__name__
    return f"pass posterior=Conditional({family}, {tuple(p.event_shape)}, given=...)"


@torch.no_grad()
def unconstrained_shape(prior: nn.Module, latent_shape: torch.Size, context_features: int = 0) -> torch.Size:
    """Returns the shape of z in the unconstrained space of the prior's support: L - 1 for a simplex of L.

    Arguments:
        prior: Module that returns the prior.
        latent_shape: Shape of z; it is returned if no bijection is known.
        context_features: Size of the context; 0 where the prior receives none.
    """
    if needs_posterior(prior):
        return latent_shape
    like = next((t for t in (*prior.parameters(), *prior.buffers()) if t.is_floating_point()), torch.empty(()))
    p = prior(*([like.new_zeros(1, context_features)] if context_features else []))
    try:
        return torch.Size(bijection_onto(support_of(p)).inverse_shape(p.event_shape))
    except NotImplementedError:
        return latent_shape


def _is_identity(transform: Transform) -> bool:
    base = getattr(transform, "base_transform", transform)
    return base is identity_transform or base == identity_transform


@torch.no_grad()
def vanishes_at_infinity(distribution: TorchDistribution) -> bool:
    """Whether |z| p(z) is below 1 far outside the bulk, as for every density that integrates to 1.

    A periodic density, such as the von Mises density on its declared support, keeps its height there. In a
    hierarchy each layer is checked: in the joint density, the others could hide a layer that does not vanish.
    """
    if isinstance(distribution, HierarchicalDistribution):
        return all(vanishes_at_infinity(layer) for layer in distribution.drawn().values())
    with isolated(0):
        z = distribution.sample((256,))
    centre, spread = z.mean(0), z.std(0) + 1e-6
    steps = torch.linspace(1e4, 1.01e4, 257, dtype=z.dtype, device=z.device).reshape(-1, *(1 for _ in centre.shape))
    tails = torch.cat([centre - steps * spread, centre + steps * spread])
    event_dim = len(distribution.event_shape)
    volume = tails.abs().log().flatten(-event_dim).sum(-1) if event_dim else tails.abs().log()
    try:
        return not bool((distribution.log_prob(tails) + volume > 0).any())
    except (NotImplementedError, KeyError) as error:
        raise InputError(
            f"VAE: the density of `{type(cells_of(distribution)).__name__}` cannot be evaluated at a given z "
            f"({error}); choose one with log_prob, such as a flow whose inverse is known."
        ) from error
