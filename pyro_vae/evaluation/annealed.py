r"""Annealed importance sampling of log p(x)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import pyro
import torch
from torch import Tensor

from pyro_vae.batch import Batch, DataLike
from pyro_vae.engine.compilation.cost import Mode
from pyro_vae.engine.compilation.routine import enabled
from pyro_vae.errors import InputError, near_match
from pyro_vae.evaluation.data import evaluated, of_a_vae, rows_at_once
from pyro_vae.evaluation.estimate import Estimate, LogMean
from pyro_vae.inference.hmc import FIRST_STEP, TARGET_ACCEPTANCE, Start, Tempered, adapted, jittered
from pyro_vae.inference.latents import Latents
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.progress import tracked
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

Schedule = Literal["linear", "sigmoid"]

# Largest number of chains x data that move at once; it bounds the memory.
_ROWS = 20_000
# The pilot run: number of chains, of transitions at beta = 0, of values of beta, and of transitions at each value.
_PILOT_CHAINS, _WARM_UP, _PILOT_BETAS, _PILOT_REPEATS = 4, 30, 40, 2
# The pilot's values of beta are cubes: close together near 0, where the posterior narrows fastest.
_POWER = 3
# Delta of the sigmoid schedule of Wu et al.
_DELTA = 4.0


@of_a_vae
def annealed_importance_sampling(
    vae: LatentVariableModel,
    data: DataLike,
    temperatures: int = 1000,
    chains: int = 16,
    *,
    start: Start = "prior",
    schedule: Schedule = "linear",
    num_leapfrog: int = 10,
    seed: int = 0,
    compile: Mode = "auto",
    progress: bool = False,
) -> Estimate:
    r"""Returns the estimate of log p(x) by annealed importance sampling.

    .. math:: \log \hat p(x) = \log \frac{1}{C} \sum_c w_c, \quad
        \log w = \sum_{t=1}^{T-1} (\beta_t - \beta_{t-1}) \log \frac{p(x, u_{t-1})}{p_0(u_{t-1})}, \quad
        0 = \beta_0 < \dots < \beta_{T-1} = 1

    Each :math:`u_t` comes from :math:`u_{t-1}` by a Hamiltonian transition that leaves
    :math:`p_0(u)^{1-\beta_t} p(x, u)^{\beta_t}` invariant, in the unconstrained space of the prior's support;
    :math:`u_0 \sim p_0`, the prior or q(u|x).

    The weights are unbiased, :math:`E[w] = p(x)`, for any number of temperatures and chains and any quality of the
    transitions; so the estimate is in expectation a lower bound. With two temperatures, it is importance sampling
    from :math:`p_0`. If a datum's effective sample size is near 1, its standard error and bias are unreliable, as the
    estimate's repr says; then use more temperatures. The estimate does not show whether all chains miss a mode of the
    posterior; on simulated data, `bidirectional_monte_carlo` bounds this error. If `log_marginal` has a small Pareto
    k-hat, it is as accurate and much cheaper.

    The step sizes, one for each datum and temperature, come from a pilot run with its own noise, since step sizes
    that adapt to the chains themselves would bias the weights.

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes. Memory is bounded for any N.
        temperatures: T, at least 2. A larger T means a smaller error and a longer time.
        chains: C, independent chains for each datum; with one, the standard error is nan.
        start: :math:`p_0`: ``"prior"``, or ``"encoder"`` for q(z|x), which needs fewer temperatures if q is good and
            at least as wide as the posterior.
        schedule: ``"linear"``, or ``"sigmoid"``: denser at both ends.
        num_leapfrog: Number of leapfrog steps of each transition.
        seed: Seed of the noise; the global random state does not change.
        compile: Whether leapfrog steps run as a compiled program. ``"auto"``: if that saves time, judged by the first
            steps. True: always, except in the pilot run and in a smaller last part of the data; a model that cannot
            be compiled is an error. With the same noise, each step is the same up to rounding. Long chains amplify
            rounding, so the estimate of a long run is another draw from the same distribution.
        progress: Whether to show a progress bar.

    Returns:
        The estimate, in nats per datum. Its diagnostics of each datum, shape ``(N,)``: ``acceptance``, the mean over
        chains and temperatures; ``effective_sample_size`` of the C weights; ``bias``, their relative variance / 2C,
        by which the estimate is too low in expectation (the leading term, valid where it is small).

    Raises:
        InputError: For fewer than two temperatures, no chains, an unknown start or schedule, discrete latents, or
            data that do not fit the VAE.
        CaptureError, CompilationError: With ``compile=True``, if the operations of the model depend on values, or
            this machine cannot compile.

    Reference: Neal, "Annealed importance sampling", 2001, equations 3 to 11; Wu, Burda, Salakhutdinov and Grosse,
    "On the quantitative analysis of decoder-based generative models", 2017, sections 2.2 and 4.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from pyro_vae import VAE, Conditional, Fixed, mlp
        >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 7)))
        >>> annealed_importance_sampling(vae, torch.zeros(5, 6), temperatures=10).pointwise.shape
        torch.Size([5])
    """
    annealing = Annealing("annealed_importance_sampling", temperatures, chains, start, schedule, num_leapfrog)
    batch = evaluated("annealed_importance_sampling", vae, data)
    sweeps = []
    with torch.no_grad(), evaluating(vae), isolated(seed, "annealed importance sampling"), enabled(compile):
        for part, share in parts(batch.size, chains, vae):
            path = annealing.path(vae, batch.select(part).to(vae.device, vae.dtype), share)
            title = f"AIS, data {part.start + 1} to {part.stop} of {batch.size}" if progress else None
            sweeps.append(annealing.forward(path, title))
    return annealing.estimate(sweeps, seed=seed)


def slices(size: int, rows: int, vae: LatentVariableModel) -> Iterator[slice]:
    """Yields slices of ``size`` data, each with at most `_ROWS` chains, for ``rows`` chains for each datum.

    Wide data have fewer at once; see `rows_at_once`.
    """
    at_once = max(1, rows_at_once(vae, _ROWS) // rows)
    return (slice(start, min(start + at_once, size)) for start in range(0, size, at_once))


class Share(NamedTuple):
    """Number of parts of the data that have the same size as a part, and whether it is the smaller last part."""

    parts: int
    rest: bool


def parts(size: int, rows: int, vae: LatentVariableModel) -> Iterator[tuple[slice, Share]]:
    """Yields `slices`, each with its `Share`."""
    every = list(slices(size, rows, vae))
    sizes = [part.stop - part.start for part in every]
    return ((part, Share(sizes.count(n), n < sizes[0])) for part, n in zip(every, sizes, strict=True))


def check_at_least(caller: str, given: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """Raises an `InputError` for the first of ``given`` that is not an integer of at least its value in ``least``."""
    for name, smallest in least.items():
        if not isinstance(given[name], int) or given[name] < smallest:
            raise InputError(f"{caller}: `{name}` is an integer of at least {smallest}, got `{given[name]!r}`.")


def check_among(caller: str, given: Mapping[str, Any], choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raises an `InputError` for the first of ``given`` that is not among its choices."""
    for name, allowed in choices.items():
        if given[name] not in allowed:
            raise InputError(f"{caller}: unknown {name} `{given[name]}`; {near_match(str(given[name]), allowed)}")


class Path:
    r"""The densities :math:`p_0(u)^{1-\beta} p(x, u)^\beta` between a start and p(x, u), for each datum of a batch.

    Arguments:
        latents: Latents of the batch.
        start: :math:`p_0`, ``"prior"`` or ``"encoder"``.
        num_leapfrog: Number of leapfrog steps of each transition.
        share: Share of the batch in the data.
    """

    def __init__(self, latents: Latents, start: Start, num_leapfrog: int, share: Share) -> None:
        self.latents, self.num_leapfrog, self.share = latents, num_leapfrog, share
        self.tempered = Tempered(latents, start)
        latents.log_likelihood(self.draw(1))  # raises for data outside the likelihood's support; moves do not check
        with self._expected(_WARM_UP + (_PILOT_BETAS - 1) * _PILOT_REPEATS, optional=True):
            self.step_sizes = self._pilot()

    def draw(self, n: int) -> Tensor:
        """Returns n draws from p0 for each datum, shape ``(n, B, *shape)``."""
        return self.tempered.draw(n)

    def move(self, u: Tensor, beta: float, step_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moves every chain by one transition that leaves the density at ``beta`` invariant.

        Arguments:
            u: Positions, shape ``(C, B, *shape)``.
            beta: Inverse temperature, between 0 and 1.
            step_size: Step size of each datum, shape ``(B,)``.

        Returns:
            Position, log ratio and acceptance probability of every chain.
        """
        return self.tempered.transition(u, beta, jittered(step_size, u.shape[:2]), self.num_leapfrog)

    def _expected(self, transitions: int, optional: bool = False) -> AbstractContextManager[None]:
        """Returns the block for so many transitions of each part of the data; see `Tempered.expected`."""
        return self.tempered.expected(
            transitions * self.share.parts, self.num_leapfrog, optional=optional or self.share.rest
        )

    def sweep(self, u: Tensor, betas: list[float], title: str | None = None) -> Sweep:
        r"""Moves chains along ``betas``, rising or falling, and returns their log weights.

        .. math:: \log w = \sum_t (\beta_t - \beta_{t-1}) \log \frac{p(x, u_{t-1})}{p_0(u_{t-1})}

        Arguments:
            u: Draws from the density at the first of ``betas``, shape ``(C, B, *shape)``.
            betas: At least two inverse temperatures.
            title: Title of the progress bar; None for no bar.
        """
        with pyro.validation_enabled(False):
            log_ratio = self.tempered.log_ratio(u, self.tempered.log_base(u))
        log_weights = torch.zeros_like(log_ratio, dtype=torch.float64)
        total, moves = torch.zeros_like(log_ratio), len(betas) - 2
        with self._expected(moves):
            for t in tracked(range(1, len(betas)), title):
                log_weights += (betas[t] - betas[t - 1]) * log_ratio.double()
                if t < len(betas) - 1:
                    u, log_ratio, acceptance = self.move(u, betas[t], self.step_size(betas[t]))
                    total += acceptance
        return Sweep(log_weights, total.mean(0) / moves if moves else torch.full_like(total[0], math.nan))

    def step_size(self, beta: float) -> Tensor:
        """Returns the step sizes at ``beta``, interpolated between those of the pilot run, shape ``(B,)``."""
        position = beta ** (1 / _POWER) * (_PILOT_BETAS - 1)
        below = min(int(position), _PILOT_BETAS - 2)
        return torch.lerp(self.step_sizes[below], self.step_sizes[below + 1], position - below).exp()

    def _pilot(self) -> Tensor:
        """Returns log step sizes, adapted at each beta of the pilot run, shape ``(betas, B)``."""
        u = self.draw(_PILOT_CHAINS)
        step = u.new_full((self.latents.batch.size,), FIRST_STEP)
        recorded = []
        for i in range(_PILOT_BETAS):
            total = torch.zeros_like(step)
            for _ in range(_PILOT_REPEATS if i else _WARM_UP):
                u, _, acceptance = self.move(u, (i / (_PILOT_BETAS - 1)) ** _POWER, step)
                step = adapted(step, acceptance.mean(0), TARGET_ACCEPTANCE)
                total = step.log() if i == 0 else total + step.log() / _PILOT_REPEATS
            recorded.append(total)
        return torch.stack(recorded)


class Sweep(NamedTuple):
    """Results of a sweep: log weights, shape ``(C, B)``, and the mean acceptance of each datum, ``(B,)``."""

    log_weights: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class Annealing:
    """Settings of the annealing: the checked arguments of `annealed_importance_sampling`.

    Attributes:
        caller: Name of the calling function, for errors.
        temperatures: Number T of temperatures.
        chains: Number C of chains for each datum.
        start: ``"prior"`` or ``"encoder"``.
        schedule: ``"linear"`` or ``"sigmoid"``.
        num_leapfrog: Number of leapfrog steps of each transition.
    """

    caller: str
    temperatures: int
    chains: int
    start: Start
    schedule: Schedule
    num_leapfrog: int

    def __post_init__(self) -> None:
        check_at_least(self.caller, vars(self), {"temperatures": 2, "chains": 1, "num_leapfrog": 1})
        check_among(self.caller, vars(self), {"start": get_args(Start), "schedule": get_args(Schedule)})

    @property
    def betas(self) -> list[float]:
        """The T inverse temperatures from 0 to 1."""
        betas = torch.linspace(0, 1, self.temperatures, dtype=torch.float64)
        if self.schedule == "sigmoid":
            betas = (_DELTA * (2 * betas - 1)).sigmoid()
            betas = (betas - betas[0]) / (betas[-1] - betas[0])
        return betas.tolist()

    def path(self, vae: LatentVariableModel, batch: Batch, share: Share) -> Path:
        """Returns the path of a batch, with step sizes from a pilot run."""
        return Path(Latents(vae, batch, self.caller), self.start, self.num_leapfrog, share)

    def forward(self, path: Path, title: str | None) -> Sweep:
        """Returns the sweep from p0 to p(x, u)."""
        return path.sweep(path.draw(self.chains), self.betas, title)

    def estimate(self, sweeps: list[Sweep], sign: int = 1, **diagnostics: Any) -> Estimate:
        """Returns the estimate ``sign * log mean w`` from the sweeps of all parts of the data."""
        mean = LogMean.of(torch.cat([sweep.log_weights for sweep in sweeps], dim=1))
        return Estimate.of(
            sign * mean.value,
            mean.error,
            method="annealed importance sampling",
            temperatures=self.temperatures,
            chains=self.chains,
            start=self.start,
            schedule=self.schedule,
            num_leapfrog=self.num_leapfrog,
            acceptance=torch.cat([sweep.acceptance for sweep in sweeps]).double().cpu(),
            effective_sample_size=mean.effective_sample_size.cpu(),
            bias=mean.bias.cpu(),
            **diagnostics,
        )
