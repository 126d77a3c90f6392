r"""Full variational Bayes: a posterior over the generative parameters too."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.distributions.kl import kl
from pyro_vae.errors import InputError
from pyro_vae.inference.interface import Inference, Loss, check_count, check_number
from pyro_vae.inference.requirements import PATHWISE, declared_size, no_parameter_prior, unshared
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class VB(Inference):
    r"""Full variational Bayes: a Gaussian q(theta) beside q(z|x).

    .. math::
        \log p(X) \ge E_{q(\theta)}\left[\sum_i \mathrm{ELBO}_\theta(x_i)\right]
        - \mathrm{KL}(q(\theta) \| p(\theta)), \qquad q(\theta) = N(\mu, \mathrm{diag}(\sigma^2)), \quad
        p(\theta) = N(0, s^2 I)

    The VAE's own generative parameters, except frozen ones, are the mean :math:`\mu`; after training the VAE is
    therefore the model at the mean of q(theta). The algorithm has the parameters :math:`\sigma`. One theta is drawn for
    each minibatch. The reported bound is the mean ELBO of a datum under q(theta); the objective also contains
    KL(theta)/N, which `remark` reports. Parameters are in unconstrained space.

    Arguments:
        prior_scale: s, scale of the prior p(theta).
        initial_scale: Initial value of :math:`\sigma`.
        num_particles: K, draws of z for each datum.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, appendix F.

    Example:
        >>> VB()
        VB(prior_scale=1.0, initial_scale=0.05, num_particles=1)
    """

    name: ClassVar[str] = "vb"
    needs = (*PATHWISE, unshared, declared_size, no_parameter_prior)

    def __init__(self, prior_scale: float = 1.0, initial_scale: float = 0.05, num_particles: int = 1) -> None:
        super().__init__()
        self.num_particles = check_count("VB", "num_particles", num_particles)
        self.prior_scale = check_number("VB", "prior_scale", prior_scale, 1e-6)
        self.initial_scale = check_number("VB", "initial_scale", initial_scale, 1e-6)
        self.log_scales = nn.ParameterDict()
        self.register_buffer("kl_per_datum", torch.zeros(()))
        self.kl_per_datum: Tensor

    def check(self, vae: LatentVariableModel) -> None:
        """Makes the parameters of q(theta) for this VAE; raises an `InputError` if the VAE cannot be trained."""
        super().check(vae)
        theta = {_key(name): p for name, p in _trained(vae).items()}
        if not self.log_scales:
            for name, p in theta.items():
                self.log_scales[name] = nn.Parameter(torch.full_like(p, math.log(self.initial_scale)))
        if {name: p.shape for name, p in theta.items()} != {name: p.shape for name, p in self.log_scales.items()}:
            raise InputError("VB: was prepared for another VAE; make a new VB() for each.")

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the bound of log p(X)/N; see `Loss`."""
        if not self.log_scales:
            self.check(vae)
        mean = _trained(vae)
        scale = {name: self.log_scales[_key(name)].exp() for name in mean}
        drawn = {id(m): m + scale[name] * torch.randn_like(m) for name, m in mean.items()}
        with _replaced(vae, drawn):
            q = vae.posterior_given(batch)
            z = q.rsample((self.num_particles,))
            elbo = batch.mean(vae.log_likelihood_of(z, batch)) - batch.mean(kl(q, vae.prior_given(batch), z))
        divergence = sum((self._kl(m, scale[name]) for name, m in mean.items()), torch.zeros_like(elbo))
        divergence = divergence / (vae.size or 1)
        if self.training:
            self.kl_per_datum.copy_(divergence.detach())
        return Loss(divergence - elbo, elbo.detach())

    def _kl(self, mean: Tensor, scale: Tensor) -> Tensor:
        s = self.prior_scale
        return (math.log(s) - scale.log() + (mean.square() + scale.square()) / (2 * s**2) - 0.5).sum()

    @torch.no_grad()
    def draw(self, vae: LatentVariableModel) -> LatentVariableModel:
        """Returns a copy of the VAE whose generative parameters are a draw from q(theta).

        Arguments:
            vae: That was trained by this algorithm.
        """
        self.check(vae)
        drawn = copy.deepcopy(vae)
        for name, mean in _trained(drawn).items():
            mean.add_(self.log_scales[_key(name)].exp() * torch.randn_like(mean))
        return drawn

    def remark(self) -> str:
        return (
            f"KL(q(theta) || p(theta))/N is {float(self.kl_per_datum):.2f} nats per datum. The numbers shown do not "
            "contain it; they are those at the mean of q(theta)"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, value in state_dict.items():
            start = f"{prefix}log_scales."
            if name.startswith(start) and name.removeprefix(start) not in self.log_scales:
                self.log_scales[name.removeprefix(start)] = nn.Parameter(torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __repr__(self) -> str:
        return f"VB({self.extra_repr()})"  # without the parameters of q(theta)


@contextmanager
def _replaced(vae: LatentVariableModel, tensors: dict[int, Tensor]) -> Iterator[None]:
    """Replaces parameters, given by their identity, by tensors, everywhere in the VAE."""
    places = [
        (module, name, parameter)
        for module in vae.modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in tensors
    ]
    try:
        for module, name, parameter in places:
            module._parameters[name] = tensors[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


def _trained(vae: LatentVariableModel) -> dict[str, nn.Parameter]:
    """The generative parameters that are not frozen; frozen ones have no posterior."""
    return {name: p for name, p in vae.theta.items() if p.requires_grad}


def _key(name: str) -> str:
    """A parameter's name as a ParameterDict allows it."""
    return name.replace(".", "/")
