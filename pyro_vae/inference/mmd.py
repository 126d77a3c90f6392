r"""InfoVAE with the maximum mean discrepancy."""

from __future__ import annotations

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.distributions.kl import kl
from pyro_vae.inference.interface import Inference, Loss, check_choice, check_count, check_number, weighted
from pyro_vae.inference.requirements import PATHWISE, trainable_draws
from pyro_vae.vae.latent_variable_model import LatentVariableModel

KERNELS = ("imq", "rbf")
# Number of draws from the prior that determine the scale of the kernel.
_DRAWS = 1000


class MMD(Inference):
    r"""InfoVAE: reconstruction, and the maximum mean discrepancy between the aggregate posterior and the prior.

    .. math:: \log p(x|z) - \kappa \, \mathrm{KL}(q(z|x) \| p(z)) - \lambda \, \mathrm{MMD}_k(q(z), p(z))

    The discrepancy is estimated without bias from the batch's z, one for each datum, and as many draws from the prior.
    If :math:`\kappa` is below 1, the objective is not a lower bound on log p(x); the reported bound is the true ELBO.
    Kernels: ``"rbf"`` :math:`e^{-d^2/C}` and ``"imq"`` :math:`C / (C + d^2)`, with
    :math:`C = 2 \sum_j \mathrm{Var}_{p}(z_j)`.

    Arguments:
        weight: lambda, weight of the discrepancy.
        kl_weight: kappa, weight of the KL; :math:`1 - \alpha` of the paper, whose lambda is ``weight`` + ``kl_weight``.
        kernel: ``"imq"`` or ``"rbf"``.
        num_particles: K, draws of z for each datum, over which all terms are averaged.

    Reference: Zhao, Song and Ermon, "InfoVAE: balancing learning and inference in variational autoencoders", 2019,
    equation 6; Tolstikhin et al., "Wasserstein auto-encoders", 2018, algorithm 2.

    Example:
        >>> MMD(kernel="rbf")
        MMD(weight=100.0, kl_weight=0.0, kernel='rbf', num_particles=1)
    """

    name: ClassVar[str] = "mmd"
    needs = (*PATHWISE, trainable_draws)

    def __init__(
        self, weight: float = 100.0, kl_weight: float = 0.0, kernel: str = "imq", num_particles: int = 1
    ) -> None:
        super().__init__()
        self.num_particles = check_count("MMD", "num_particles", num_particles)
        self.weight = check_number("MMD", "weight", weight, 0.0)
        self.kl_weight = check_number("MMD", "kl_weight", kl_weight, 0.0)
        self.kernel = check_choice("MMD", "kernel", kernel, KERNELS)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the objective, and the true ELBO as bound; see `Loss`."""
        q, p = vae.posterior_given(batch), vae.prior_given(batch)
        z = q.rsample((self.num_particles,))
        shape = (self.num_particles,) if p.batch_shape else (self.num_particles, batch.size)
        draws = p.rsample(shape) if p.has_rsample else p.sample(shape)
        reconstruction, divergence = batch.mean(vae.log_likelihood_of(z, batch)), batch.mean(kl(q, p, z))
        discrepancy = self.discrepancy(z.flatten(2), draws.flatten(2), _scale(p), batch.weight, p.batch_shape != ())
        value = weighted((self.weight, discrepancy), (self.kl_weight, divergence)) - reconstruction
        return Loss(value - vae.log_parameter_prior_per_datum(), (reconstruction - divergence).detach())

    def discrepancy(
        self, z: Tensor, draws: Tensor, scale: Tensor, weight: Tensor | None = None, paired: bool = False
    ) -> Tensor:
        """Returns the unbiased estimate of the squared maximum mean discrepancy, mean over K, a scalar.

        Arguments:
            z: Draws from q, shape ``(K, B, L)``.
            draws: Draws from p, shape ``(K, B, L)``.
            scale: C of the kernel, a scalar.
            weight: Weight of each datum, shape ``(B,)``.
            paired: Whether each datum has its own prior; its draw then has the weight of the datum.
        """
        n = z.shape[1]
        pairs_in_all = max(n * (n - 1), 1)  # a single datum has no pair
        apart = 1 - torch.eye(n, device=z.device, dtype=z.dtype)
        ones = torch.ones(n, device=z.device, dtype=z.dtype)
        of_z = ones if weight is None else weight
        of_draws = of_z if paired else ones
        within_q = (self._kernel(z, z, scale) * torch.outer(of_z, of_z) * apart).sum((-2, -1)) / pairs_in_all
        within_p = (self._kernel(draws, draws, scale) * torch.outer(of_draws, of_draws) * apart).sum((-2, -1))
        between = (self._kernel(z, draws, scale) * torch.outer(of_z, of_draws)).mean((-2, -1))
        return (within_q + within_p / pairs_in_all - 2 * between).mean()

    def _kernel(self, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        squared = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
        return (-squared / scale).exp() if self.kernel == "rbf" else scale / (scale + squared)

    def remark(self) -> str:
        if self.kl_weight >= 1:
            return ""
        return "did not maximise a lower bound on log p(x); the ELBO shown is the true one"


@torch.no_grad()
def _scale(p: TorchDistribution) -> Tensor:
    """C, from separate draws: if C depended on the compared draws, the discrepancy would be biased."""
    rows = p.batch_shape.numel()
    return 2 * p.sample((max(_DRAWS // rows, 2),)).flatten(len(p.batch_shape) + 1).var(0).sum(-1).mean()
