r"""Monte Carlo EM."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.inference.hmc import Tempered, adapted, jittered
from pyro_vae.inference.interface import Inference, Loss, Phase, check_count, check_number
from pyro_vae.inference.latents import Latents
from pyro_vae.inference.requirements import differentiable_likelihood, movable_latents, unshared
from pyro_vae.runtime.modes import evaluating
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Change of the log step size for each unit of a transition's mean acceptance above the target.
_RATE = 0.2


class MCEM(Inference):
    r"""Monte Carlo EM: z by Hamiltonian Monte Carlo from p(z|x), then a few updates of theta at that z.

    .. math:: \text{E:}\quad z \sim p_\theta(z|x) \qquad \text{M, several times:}\quad -\log p_\theta(x, z)

    The encoder is not used and the posterior is not trained; the ELBO and importance sampling by q therefore give no
    information about the model. Each chain starts from the prior at every step. With few transitions the draws do not
    reach the posterior, and theta converges to the fixed point of a biased E-step. Persistent chains, one for each
    datum, instead continue from their position at the datum's last visit. One transition for each visit is then
    enough, because theta moves little between visits; this is the MCEM of the paper. The E-step is a phase with loss 0
    that moves no parameters.

    Arguments:
        transitions: Number of transitions of each chain in an E-step.
        leapfrog_steps: Number of leapfrog steps of each transition.
        updates: Number of M-step updates of theta after each E-step.
        target_acceptance: Mean acceptance probability to which the step size is adapted, from step to step.
        persistent: Whether a datum's chain continues at its next visit. Needs ``VAE(..., size=N)``, and data that lie
            in memory as a whole; `chains` keeps N latents.

    Attributes:
        chains: Positions of persistent chains in unconstrained space, ``(N, *shape)``; nan before the first visit.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, appendix E.

    Example:
        >>> MCEM(transitions=1, persistent=True)
        MCEM(transitions=1, leapfrog_steps=10, updates=5, target_acceptance=0.9, persistent=True)
    """

    name: ClassVar[str] = "mcem"
    needs = (unshared, movable_latents, differentiable_likelihood)
    trains_posterior: ClassVar[bool] = False
    has_bound: ClassVar[bool] = False

    def __init__(
        self,
        transitions: int = 10,
        leapfrog_steps: int = 10,
        updates: int = 5,
        target_acceptance: float = 0.9,
        persistent: bool = False,
    ) -> None:
        super().__init__()
        self.transitions = check_count("MCEM", "transitions", transitions)
        self.leapfrog_steps = check_count("MCEM", "leapfrog_steps", leapfrog_steps)
        self.updates = check_count("MCEM", "updates", updates)
        self.target_acceptance = check_number("MCEM", "target_acceptance", target_acceptance, 0.01, 0.99)
        self.register_buffer("step_size", torch.tensor(0.1))
        self.step_size: Tensor
        self.persistent = persistent
        self.register_buffer("chains", None)
        self.chains: Tensor | None
        self._rows: Tensor | None = None

    def check(self, vae: LatentVariableModel) -> None:
        super().check(vae)
        if not self.persistent:
            return
        if vae.size is None:
            raise InputError("MCEM: persistent chains are one for each datum; declare their number, VAE(..., size=N).")
        shape = (vae.size, *Latents(vae, vae.probe_batch(), "MCEM").shape)
        if self.chains is None or self.chains.shape != shape:
            self.chains = torch.full(shape, math.nan, device=vae.device, dtype=vae.dtype)

    def visit(self, rows: Tensor | None) -> None:
        self._rows = rows

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        kept = state_dict.get(f"{prefix}chains")
        if kept is not None and (self.chains is None or self.chains.shape != kept.shape):
            self.chains = torch.empty_like(kept, device=self.step_size.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(self._e_step, frozenset()), *(Phase(self._m_step, frozenset({"theta"})),) * self.updates)

    def _e_step(self, vae: LatentVariableModel, batch: Batch, carry: Any) -> tuple[Loss, Any]:
        nothing = torch.zeros((), dtype=vae.dtype, device=vae.device, requires_grad=True)  # no parameter moves it
        return Loss(nothing), self._draw(vae, batch)

    def _m_step(self, vae: LatentVariableModel, batch: Batch, carry: Any) -> tuple[Loss, Any]:
        return Loss(-batch.mean(vae.log_joint_of(carry, batch)) - vae.log_parameter_prior_per_datum()), carry

    @torch.no_grad()
    def _draw(self, vae: LatentVariableModel, batch: Batch) -> Tensor:
        """The E-step: z of each datum, shape ``(B, *latent_shape)``."""
        with evaluating(vae):  # the target must not change with the draw
            latents = Latents(vae, batch, "MCEM")
            u, path = self._start(latents), Tempered(latents)
            step_size = self.step_size.to(u)
            with path.expected(self.transitions, self.leapfrog_steps):
                for _ in range(self.transitions):
                    steps = jittered(step_size, u.shape[:2])
                    u, _, acceptance = path.transition(u, 1.0, steps, self.leapfrog_steps)
                    step_size = adapted(step_size, acceptance.mean(), self.target_acceptance, _RATE)
            if self.training:
                self.step_size.copy_(step_size)
                if self.persistent and self.chains is not None:
                    self.chains[self._rows] = u.squeeze(0)
            return latents.constrain(u).squeeze(0)

    def _start(self, latents: Latents) -> Tensor:
        """First positions of the chains: draws from the prior, or the last positions; shape ``(1, B, *shape)``."""
        u = latents.draw_prior(1)
        if not self.persistent:
            return u
        if self.chains is None or self._rows is None:
            raise InputError(
                "MCEM: persistent chains need to know which of the data a minibatch holds; train by `fit`, on data "
                "that lie in memory as a whole (no DataLoader)."
            )
        left = self.chains[self._rows].to(u).unsqueeze(0)
        return torch.where(left.isnan(), u, left)

    def remark(self) -> str:
        if self.updates == 1:
            return ""
        return f"took {self.updates} updates of theta for each minibatch, where other algorithms take one"
