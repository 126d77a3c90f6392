r"""Data simulated from each prior family in two latent dimensions are recovered by the VAE of that family.

The decoder is known and held at the truth; the prior is learned from another start by an amortized posterior. The
exact log p(x) of both models is a quadrature over z on a grid (a sum, for discrete latents), so that nothing is
estimated but over held-out data. An estimate by maximum likelihood from N data with k parameters is worse than the
truth by d nats per held-out datum, where 2 N d is distributed as chi-square with k degrees of freedom (Wilks); by no
more may the VAE be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from scipy.stats import chi2, norm
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, biject_to
from z_test import FAILURE_RATE, assert_mean

from pyro_vae import VAE, Conditional, Fixed, Flow, Learned, Mixture, Training, fit, mlp
from pyro_vae.distributions.enumeration import latent_values
from pyro_vae.distributions.support import support_of
from pyro_vae.evaluation import log_marginal
from pyro_vae.inference import IWAE, RWS, AnalyticKL, Enumeration, Inference

N, HELD_OUT, CELLS, NOISE = 4000, 1000, 5, 0.4
SIMPLEX, LINE = (-10.0, 10.0, 0.08), (-8.0, 8.0, 0.2)


class Decoder(nn.Module):
    """p(x|z) = N(A h(z) + tanh(B h(z)), 0.4^2), known: without parameters to learn."""

    def __init__(self, latent: int, gain: float, periodic: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        features = 2 * latent if periodic else latent
        a = torch.linalg.qr(torch.randn(CELLS, features, generator=generator)).Q  # orthogonal columns
        self.register_buffer("A", 1.5 * gain * a)
        self.register_buffer("B", 0.3 * gain * torch.randn(CELLS, features, generator=generator))
        self.periodic = periodic

    def forward(self, z: Tensor) -> TorchDistribution:
        h = torch.cat([z.cos(), z.sin()], -1) if self.periodic else z
        return dist.Normal(h @ self.A.T + (h @ self.B.T).tanh(), NOISE).to_event(1)


@dataclass(frozen=True)
class Case:
    """A family: the truth and the start of its prior, and how to train and to integrate it."""

    truth: Callable[[], nn.Module]
    start: Callable[[], nn.Module]
    posterior: Callable[[int], nn.Module] = lambda latent: mlp(CELLS, 40)
    inference: Callable[[], Inference] = lambda: IWAE(8)
    axis: tuple[float, float, float] = LINE  # of each unconstrained dimension: from, to, step
    gain: float = 1.0
    periodic: bool = False
    linear: bool = False
    steps: int = 1000


def declared(family: type[TorchDistribution], **values: list[float]) -> Callable[[], nn.Module]:
    return lambda: Conditional(family, (2,), **{name: Learned(value) for name, value in values.items()})


def both(family: type[TorchDistribution], truth: dict[str, list[float]], start: dict[str, list[float]]) -> list:
    return [declared(family, **truth), declared(family, **start)]


def real(family: type[TorchDistribution], axis: tuple[float, float, float] = LINE, **fixed: Fixed) -> Case:
    def make(loc: list[float], scale: list[float]) -> Callable[[], nn.Module]:
        return lambda: Conditional(family, (2,), loc=Learned(loc), scale=Learned(scale), **fixed)

    return Case(make([0.6, -0.4], [0.6, 1.0]), make([0.0, 0.0], [1.0, 1.0]), axis=axis)


def mixture() -> nn.Module:
    loc, scale = [[-2.5, 0.0], [1.0, 1.5], [1.5, -2.0]], [[0.5, 0.8], [0.4, 0.4], [0.8, 0.3]]
    return Mixture(dist.Normal, (2,), 3, weights=Learned([0.3, 0.5, 0.2]), loc=Learned(loc), scale=Learned(scale))


def flow(amplitude: float) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = Flow((2,), "maf", transforms=1, hidden=(4,))
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(amplitude * torch.randn(parameter.shape, generator=generator))
        return module

    return make


def von_mises(latent: int) -> nn.Module:
    return Conditional(dist.VonMises, (latent,), given=mlp(CELLS, 40))


def discrete(family: type[TorchDistribution], size: int, truth: list[float]) -> Case:
    return Case(
        lambda: Conditional(family, (size,), logits=Learned(truth)),
        lambda: Conditional(family, (size,), logits=Learned([0.0] * size)),
        lambda latent: Conditional(family, (latent,), given=mlp(CELLS, 40)),
        Enumeration,
        linear=True,
        steps=600,
    )


POSITIVE = (-7.0, 5.0, 0.04)
CASES = {
    "normal": replace(real(dist.Normal), steps=500),
    "laplace": real(dist.Laplace, (-10.0, 10.0, 0.06)),
    "student": real(dist.StudentT, (-16.0, 16.0, 0.2), df=Fixed(5.0)),
    "mixture": Case(
        mixture,
        lambda: Mixture(
            dist.Normal, (2,), 3, loc=Learned([[-1.0, 0.0], [1.0, 1.0], [1.0, -1.0]]), scale=Learned([[1.0, 1.0]] * 3)
        ),
    ),
    "flow": Case(flow(0.8), flow(0.0), axis=(-12.0, 12.0, 0.2)),
    "gamma": Case(
        *both(
            dist.Gamma,
            {"concentration": [2.0, 4.0], "rate": [2.0, 3.0]},
            {"concentration": [1.0, 1.0], "rate": [1.0, 1.0]},
        ),
        axis=POSITIVE,
    ),
    "log-normal": Case(
        *both(dist.LogNormal, {"loc": [0.3, -0.3], "scale": [0.4, 0.7]}, {"loc": [0.0, 0.0], "scale": [1.0, 1.0]}),
        axis=POSITIVE,
    ),
    "beta": Case(
        *both(
            dist.Beta,
            {"concentration1": [2.0, 4.0], "concentration0": [3.0, 1.5]},
            {"concentration1": [1.0, 1.0], "concentration0": [1.0, 1.0]},
        ),
        axis=SIMPLEX,
        gain=4.0,
    ),
    "dirichlet": Case(
        lambda: Conditional(dist.Dirichlet, (3,), concentration=Learned([2.0, 1.5, 4.0])),
        lambda: Conditional(dist.Dirichlet, (3,), concentration=Learned([1.0, 1.0, 1.0])),
        axis=SIMPLEX,
        gain=4.0,
    ),
    "von-mises": Case(
        *both(
            dist.VonMises,
            {"loc": [0.5, -1.0], "concentration": [3.0, 1.0]},
            {"loc": [0.0, 0.0], "concentration": [1.0, 1.0]},
        ),
        posterior=von_mises,
        inference=lambda: RWS(8),
        axis=(-torch.pi, torch.pi - 1e-9, torch.pi / 60),
        periodic=True,
    ),
    "bernoulli": discrete(dist.Bernoulli, 2, [1.0, -0.7]),
    "categorical": discrete(dist.OneHotCategorical, 4, [0.8, 0.0, -0.5, 0.3]),
}


def nodes(case: Case, p: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Points z of the latent space, shape (G, L), and the log of the volume that each stands for."""
    if p.support.is_discrete:
        values = latent_values(p.expand((1,)), "test").squeeze(1).double()
        return values, torch.zeros(len(values)).double()
    low, high, step = case.axis
    axis = torch.arange(low, high, step, dtype=torch.float64)
    u = torch.stack([a.flatten() for a in torch.meshgrid(axis, axis, indexing="ij")], -1)
    transform = biject_to(support_of(p))
    z = transform(u)
    slope = transform.log_abs_det_jacobian(u, z)
    return z, (slope if slope.dim() == 1 else slope.sum(-1)) + 2 * torch.tensor(step).double().log()


@torch.no_grad()
def exact_log_marginal(case: Case, x: Tensor, decoder: Decoder, *priors: nn.Module) -> list[Tensor]:
    """log p(x) of each prior's model by quadrature over z, shape (B,) each."""
    z, volume = nodes(case, priors[0].double()())
    log_masses = [prior.double()().log_prob(z) + volume for prior in priors]
    for log_mass in log_masses:
        assert abs(float(log_mass.logsumexp(0).exp()) - 1) < 2e-3
    mean = decoder.double()(z).base_dist.loc
    parts: list[list[Tensor]] = [[] for _ in priors]
    for chunk in x.double().split(50):
        square = chunk.square().sum(-1, keepdim=True) - 2 * chunk @ mean.T + mean.square().sum(-1)
        distance = square / (2 * NOISE**2)
        constant = CELLS * torch.tensor(2 * torch.pi * NOISE**2).double().log() / 2
        for part, log_mass in zip(parts, log_masses, strict=True):
            part.append((log_mass - distance).logsumexp(-1) - constant)
    return [torch.cat(part) for part in parts]


def simulated(case: Case) -> tuple[nn.Module, Decoder, Tensor]:
    torch.manual_seed(5)
    truth = case.truth()
    latent = truth().event_shape[0]
    decoder = Decoder(latent, case.gain, case.periodic)
    if case.linear:  # orthogonal columns: the exact posterior of independent latents is independent
        decoder.B.zero_()
    with torch.no_grad():
        x = decoder(truth().sample((N + HELD_OUT,))).sample()
    return truth, decoder, x


def excess(x: Tensor, case: Case, decoder: Decoder, truth: nn.Module, learned: nn.Module) -> tuple[float, float]:
    """How far log p(x) of the learned model is below that of the truth, and the limit of it by chance."""
    ours, best = exact_log_marginal(case, x, decoder, learned, truth)
    difference = best - ours
    error = float(difference.std()) / len(x) ** 0.5 * norm.isf(FAILURE_RATE)
    mean = float(difference.mean())
    k = sum(p.numel() for p in truth.parameters()) - isinstance(truth, Mixture)
    assert mean > -error
    return mean, error + float(chi2.isf(FAILURE_RATE, k)) / (2 * N)


def recovers(name: str) -> VAE:
    case = CASES[name]
    truth, decoder, x = simulated(case)
    prior = case.start()
    vae = VAE(prior, decoder, case.posterior(truth().event_shape[0]))
    off, limit = excess(x[N:], case, decoder, truth, prior)
    assert off > 2 * limit  # so that it has something to learn
    vae.float()
    fit(
        vae,
        x[:N],
        case.inference(),
        Training(
            optimizer=lambda p: torch.optim.Adam(p, lr=0.02),
            steps=case.steps,
            batch_size=200,
            schedule=lambda i: min(1.0, 2 * (1 - i / case.steps)),
        ),
    )
    off, limit = excess(x[N:], case, decoder, truth, prior)
    assert off < limit, f"{off:.4f} nats below the truth, where {limit:.4f} are chance"
    vae.float()
    return vae


@pytest.mark.parametrize("name", ["normal", "categorical"])
def test_the_prior_is_recovered(name: str) -> None:
    recovers(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("normal", "categorical")])
def test_the_prior_of_every_family_is_recovered(name: str) -> None:
    recovers(name)


@pytest.mark.parametrize(
    "name", ["normal", "dirichlet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixture", "gamma"))]
)
def test_log_marginal_is_the_quadrature_within_its_error(name: str) -> None:
    """With the true prior and a posterior that is trained for a short while."""
    case = CASES[name]
    truth, decoder, x = simulated(case)
    vae = VAE(truth, decoder, case.posterior(truth().event_shape[0]))
    for parameter in truth.parameters():
        parameter.requires_grad_(False)
    fit(vae, x[:N], IWAE(4), Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.02), steps=120, batch_size=100))
    held_out = x[N : N + 40]
    (exact,) = exact_log_marginal(case, held_out, decoder, truth)
    estimate = log_marginal(vae.double(), held_out.double(), 10_000)
    assert estimate.standard_error < 0.01
    assert_mean(torch.tensor(estimate.value), exact.mean(), torch.tensor(estimate.standard_error))


# ------------------------------------------------------------------ clustered data


def linear_log_marginal(vae: VAE, x: Tensor) -> Tensor:
    """log p(x) of a linear decoder and a (mixture of) Normal prior in closed form."""
    with torch.no_grad():
        weight, bias = vae.likelihood.head.weight, vae.likelihood.head.bias
        noise = vae.decode(torch.zeros(1, 2)).base_dist.scale[0] ** 2
        p = vae.prior_given(None)
        if isinstance(vae.prior, Mixture):
            cells, logits = p.component_distribution.base_dist, p.mixture_distribution.logits.log_softmax(-1)
        else:
            cells, logits = p.base_dist.expand((1, 2)), torch.zeros(1)
        of_x = [
            MultivariateNormal(weight @ loc + bias, (weight * scale**2) @ weight.T + noise.diag()).log_prob(x)
            for loc, scale in zip(cells.loc, cells.scale, strict=True)
        ]
        return (torch.stack(of_x) + logits.unsqueeze(-1)).logsumexp(0)


def test_a_mixture_prior_beats_the_standard_normal_on_clustered_data() -> None:
    """Where the decoder, linear, cannot make clusters of one Normal."""
    torch.manual_seed(0)
    centres = 3 * torch.randn(4, CELLS)
    x = centres[torch.randint(4, (1500,))] + 0.5 * torch.randn(1500, CELLS)
    train, held_out = x[:1000], x[1000:]
    values = []
    for prior, inference in (
        (Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)), AnalyticKL()),
        (Mixture(dist.Normal, (2,), 4), IWAE(5)),
    ):
        torch.manual_seed(1)
        likelihood = Conditional(dist.Normal, (CELLS,), given=mlp(2), scale=Learned(1.0))
        vae = VAE(prior, likelihood, Conditional(dist.Normal, (2,), given=mlp(CELLS, 20)))
        fit(
            vae,
            train,
            inference,
            Training(
                optimizer=lambda p: torch.optim.Adam(p, lr=0.02),
                steps=300,
                batch_size=100,
                schedule=lambda i: 1 - i / 300,
            ),
        )
        with pyro.validation_enabled(False):
            values.append(linear_log_marginal(vae, held_out))
    difference = values[1] - values[0]
    assert float(difference.mean() / (difference.std() / len(difference) ** 0.5)) > 4
