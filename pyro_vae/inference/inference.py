r"""The one interface of all inference algorithms: a sequence of losses whose gradients are followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.modes import evaluating
from pyro_vae.vae import VAE


class Loss(NamedTuple):
    """What a phase returns.

    Attributes:
        value: Scalar to differentiate: the mean over the batch, in nats per datum (minus log p(theta)/N where the
            parameters have a prior and the phase moves them).
        bound: Detached lower bound on log p(x), mean over the batch, in nats per datum; None where there is none.
    """

    value: Tensor
    bound: Tensor | None = None


class Phase(NamedTuple):
    """One loss of an algorithm's step, and the parameters that its gradient moves.

    Attributes:
        compute: From the VAE, the batch and the carry of the phase before it (None in the first phase) to the
            loss and the carry.
        moves: Which of ``"theta"`` (generative), ``"phi"`` (inference) and ``"own"`` (the algorithm's) move.
    """

    compute: Callable[[VAE, Batch, Any], tuple[Loss, Any]]
    moves: frozenset[str]


EVERYTHING = frozenset({"theta", "phi", "own"})


class Inference(nn.Module):
    r"""An inference algorithm: the sequence of losses whose gradients it follows.

    An algorithm with one loss for all parameters implements `loss`. One with several overrides `phases`; the caller
    steps the optimizer between them, so that a later phase sees the moved parameters. What a phase hands to the next
    one is its carry; what lasts from step to step is buffers; what is optimised beside the VAE is parameters.

    Example:
        >>> import torch
        >>> class IWAE(Inference):
        ...     name = "iwae"
        ...     def loss(self, vae, batch):
        ...         log_weights = vae.log_weights(batch, num_particles=5)
        ...         bound = batch.mean(log_weights.logsumexp(0) - torch.tensor(5.0).log())
        ...         return Loss(-bound - vae.log_parameter_prior_per_datum(), bound.detach())

    An experiment file knows it by its short name once it stands in the registry:
    ``pyro_vae.inference.ALGORITHMS["iwae"] = IWAE``.

    Attributes:
        name: The short name, by which experiment files refer to it.
        trains_posterior: Whether phi moves.
        has_bound: Whether a phase reports a lower bound on log p(x).
    """

    name: ClassVar[str] = "unnamed"
    trains_posterior: ClassVar[bool] = True
    has_bound: ClassVar[bool] = True

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of one step, in order."""
        return (Phase(self._whole, EVERYTHING),)

    def loss(self, vae: VAE, batch: Batch) -> Loss:
        """Returns the one loss of an algorithm of one phase."""
        raise NotImplementedError(f"{type(self).__name__} implements neither `loss` nor `phases`")

    def _whole(self, vae: VAE, batch: Batch, carry: Any) -> tuple[Loss, Any]:
        return self.loss(vae, batch), None

    def losses(self, vae: VAE, data: Tensor | Batch) -> Iterator[Loss]:
        """Yields the loss of each phase; the caller follows its gradient before it asks for the next.

        Arguments:
            vae: The VAE.
            data: Shape ``(B, *event_shape)``, or a `Batch`.

        Example:
            >>> import pyro.distributions as dist, torch
            >>> from pyro_vae import VAE, Conditional, Fixed, mlp
            >>> from pyro_vae.inference import AEVB
            >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
            >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 10)))
            >>> for loss in AEVB().losses(vae, torch.ones(4, 6)):
            ...     loss.value.backward()
        """
        batch = vae.check(data)
        carry = None
        for phase in self.phases:
            loss, carry = phase.compute(vae, batch, carry)
            if not isinstance(loss, Loss) or loss.value.dim() != 0:
                raise InputError(
                    f"{type(self).__name__}: a phase must return Loss(value, bound) with a scalar value (the mean over "
                    f"the batch, nats per datum); it returned a `{type(loss).__name__}`."
                )
            yield loss

    def check(self, vae: VAE) -> None:
        """Raises an `InputError` where the algorithm cannot train this VAE; called before the first step."""

    def moved(self, vae: VAE, phase: Phase) -> dict[str, nn.Parameter]:
        """Returns the trainable parameters that a phase moves, by name."""
        groups: dict[str, dict[str, nn.Parameter]] = {
            "theta": vae.theta,
            "phi": vae.phi,
            "own": {f"inference.{name}": p for name, p in self.named_parameters()},
        }
        return {
            name: parameter
            for group in sorted(phase.moves)
            for name, parameter in groups[group].items()
            if parameter.requires_grad
        }


def check_num_particles(algorithm: str, num_particles: int) -> int:
    """Returns ``num_particles``; raises an `InputError` where it is not a positive integer."""
    if not isinstance(num_particles, int) or num_particles < 1:
        raise InputError(f"{algorithm}: `num_particles` is a positive integer, got `{num_particles!r}`.")
    return num_particles


def check_reparameterizable(algorithm: str, vae: VAE) -> None:
    """Raises an `InputError` where no gradient passes through the posterior's draws."""
    with evaluating(vae):  # no batch statistics of zeros
        probe = vae.encode(vae.probe_batch())
    if not probe.has_rsample:
        raise InputError(
            f"{algorithm}: needs a reparameterizable posterior, and `{probe}` is not; use wake-sleep, which only "
            "needs its density, or a posterior with rsample."
        )
