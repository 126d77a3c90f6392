r"""Bidirectional Monte Carlo: a lower and an upper bound on log p(x) of simulated data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.engine.compilation.cost import Mode
from pyro_vae.engine.compilation.routine import enabled
from pyro_vae.errors import InputError
from pyro_vae.evaluation.annealed import Annealing, Path, Schedule, Sweep, check_at_least, parts
from pyro_vae.evaluation.data import of_a_vae
from pyro_vae.evaluation.estimate import Estimate
from pyro_vae.inference.hmc import Start
from pyro_vae.inference.latents import Latents
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Number of transitions that make the chains of a pair independent of its exact z.
_MIXING = 50


@dataclass(frozen=True)
class Sandwich:
    r"""A lower and an upper bound on log p(x) of simulated data; each holds in expectation.

    Attributes:
        lower: Lower bound: :math:`E[\text{lower}] \le \log p(x)`.
        upper: Upper bound: :math:`E[\text{upper}] \ge \log p(x)`.
        data: The simulated x, shape ``(n, *event_shape)``, in the likelihood's units.
        latents: The z of each simulated x, shape ``(n, *latent_shape)``: exact draws from p(z|x).
    """

    lower: Estimate
    upper: Estimate
    data: Tensor
    latents: Tensor

    @property
    def width(self) -> Estimate:
        """Upper minus lower bound of each pair, in nats per datum: in expectation at least the error of either bound.

        The pairs are independent, so ``sampling_error`` covers all of its noise.
        """
        errors = [bound.diagnostics["pointwise_error"] for bound in (self.lower, self.upper)]
        return Estimate.of(self.upper.pointwise - self.lower.pointwise, torch.stack(errors).norm(dim=0))

    def __repr__(self) -> str:
        lower, upper, width = self.lower, self.upper, self.width
        return (
            f"Sandwich(lower {lower.value:.4f} ± {lower.standard_error:.4f}, upper {upper.value:.4f} ± "
            f"{upper.standard_error:.4f}, width {width.value:.4f} ± {width.sampling_error:.4f}, {len(self.data)} data)"
        )


@of_a_vae
def bidirectional_monte_carlo(
    vae: LatentVariableModel,
    n: int,
    temperatures: int = 1000,
    chains: int = 16,
    *,
    start: Start = "prior",
    schedule: Schedule = "linear",
    num_leapfrog: int = 10,
    context: Tensor | None = None,
    seed: int = 0,
    compile: Mode = "auto",
    progress: bool = False,
) -> Sandwich:
    r"""Returns a lower and an upper bound on log p(x), for data simulated from the model.

    .. math:: z, x \sim p(z, x), \qquad
        E \Bigl[ \log \frac{1}{C} \sum_c w_c \Bigr] \le \log p(x) \le E \Bigl[ -\log \frac{1}{C} \sum_c w'_c \Bigr]

    The z that generated x is an exact draw from p(z|x). Annealed importance sampling in reverse goes from this z to
    :math:`p_0`; its weights have :math:`E[w'] = 1 / p(x)`.

    If the width is small, `annealed_importance_sampling` with the same settings is accurate on data from the model.
    Real data that the model describes badly may need more temperatures. The bounds do not say how well the model
    describes real data.

    The C reverse chains of a pair begin at its z and move apart by transitions that leave p(z|x) invariant. If they
    cannot pass between the modes of p(z|x), the standard error of ``upper`` is too small; the sampling error of
    ``width`` is still right.

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        n: Number of pairs (z, x).
        temperatures: T, at least 2; see `annealed_importance_sampling`, as for the arguments below.
        chains: C, the number of chains for each pair and direction.
        start: :math:`p_0`, ``"prior"`` or ``"encoder"``.
        schedule: ``"linear"`` or ``"sigmoid"``.
        num_leapfrog: Number of leapfrog steps of each transition.
        context: Context of each pair, shape ``(n, C)``, for a model with a context.
        seed: Seed of the simulation and the noise; the global random state does not change.
        compile: Whether leapfrog steps run as a compiled program.
        progress: Whether to show a progress bar.

    Returns:
        Two estimates in nats per datum, with the diagnostics of `annealed_importance_sampling`. The ``bias`` of
        ``upper`` says by how much it is too high.

    Raises:
        InputError: For no pairs, a context that is missing or does not fit, and as `annealed_importance_sampling`.

    Reference: Grosse, Ghahramani and Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo",
    2015, sections 3.1 and 4.1.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)))
        >>> bidirectional_monte_carlo(vae, 5, temperatures=10).data.shape
        torch.Size([5, 6])
    """
    annealing = Annealing("bidirectional_monte_carlo", temperatures, chains, start, schedule, num_leapfrog)
    _check(vae, n, context)
    pairs: list[tuple[Tensor, Tensor]] = []
    forward: list[Sweep] = []
    reverse: list[Sweep] = []
    with torch.no_grad(), evaluating(vae), isolated(seed, "bidirectional Monte Carlo"), enabled(compile):
        Latents(vae, vae.probe_batch(), annealing.caller)  # raises if the prior has no gradient
        for part, share in parts(n, chains, vae):
            title = f"data {part.start + 1} to {part.stop} of {n}" if progress else None
            given = None if context is None else context[part]
            z, dreams = vae.dreams(vae.blank(part.stop - part.start, given))
            path = annealing.path(vae, dreams, share)
            pairs.append((z, dreams.x))
            forward.append(annealing.forward(path, title and f"AIS, {title}"))
            exact = _exact_draws(path, z, chains)
            reverse.append(path.sweep(exact, annealing.betas[::-1], title and f"reverse AIS, {title}"))
    z = torch.cat([latents for latents, _ in pairs])
    x = pytree.tree_map(lambda *tensors: torch.cat(tensors), *(data for _, data in pairs))
    return Sandwich(annealing.estimate(forward, seed=seed), annealing.estimate(reverse, sign=-1, seed=seed), x, z)


def _check(vae: LatentVariableModel, n: int, context: Tensor | None) -> None:
    check_at_least("bidirectional_monte_carlo", {"n": n}, {"n": 1})
    given, expected = None if context is None else tuple(context.shape), (n, vae.context_features)
    if given != (expected if vae.context_features else None):
        remedy = f"pass context=, one row for each pair, of shape {expected}" if expected[1] else "leave it out"
        raise InputError(
            f"bidirectional_monte_carlo: the model has context_features={expected[1]} and the context is of shape "
            f"{given}; {remedy}."
        )


def _exact_draws(path: Path, z: Tensor, chains: int) -> Tensor:
    """Returns nearly independent draws from p(u|x) in unconstrained space, shape ``(C, n, *shape)``, moved from z."""
    u = path.latents.unconstrain(z)
    u = u.expand(chains, *u.shape)
    for _ in range(_MIXING):
        u, _, _ = path.move(u, 1.0, path.step_size(1.0))
    return u
