"""Pyro programs that are not VAEs, each with its guide, its loss and the arguments of its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal, init_to_sample
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn


class Program(NamedTuple):
    """A model with its guide, loss, and the arguments of step ``i``."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: Any
    arguments: Callable[[int], tuple[Any, ...]]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator())


def regression_model(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * w).sum(-1) + b, scale), obs=y)


def regression_data(n=20):
    x = _randn(n, 3)
    return x, x @ torch.tensor([1.0, -1.0, 2.0]) + 0.3 * _randn(n, 4)[:, 3]


def regression(guide=AutoNormal, loss=None, **options):
    x, y = regression_data()
    return Program(regression_model, guide(regression_model, **options), loss or Trace_ELBO(), lambda i: (x, y))


def low_rank():
    return regression(AutoLowRankMultivariateNormal, rank=2)


def point_estimate():
    return regression(AutoDelta)


def mean_field():
    return regression(loss=TraceMeanField_ELBO(num_particles=2))


def relaxed_mixture():
    """Local latents of subsampled data, whose parameters the plate selects by an index that is an argument."""
    x = torch.cat([_randn(15) - 2, _randn(15) + 2])
    index = torch.stack([torch.randperm(30, generator=torch.Generator().manual_seed(i))[:10] for i in range(60)])

    def model(rows):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", 30, subsample=rows):
            z = pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.5), probs=torch.ones(2) / 2))
            pyro.sample("x", dist.Normal((z * loc).sum(-1), 1.0), obs=x[rows])

    def guide(rows):
        mean = pyro.param("mean", torch.tensor([-1.0, 1.0]))
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        pyro.sample("loc", dist.Normal(mean, scale).to_event(1))
        with pyro.plate("data", 30, subsample=rows):
            logits = pyro.param("logits", torch.zeros(30, 2), event_dim=1)
            pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits))

    return Program(model, guide, Trace_ELBO(), lambda i: (index[i],))


def deep_exponential_family():
    """Two layers of Gamma latents with Gamma weights (Ranganath et al. 2015), Poisson data."""
    x = torch.poisson(3 * torch.ones(6, 4), generator=_generator())

    def gamma(name, shape):
        alpha = pyro.param(f"alpha_{name}", torch.ones(shape), constraint=constraints.softplus_positive)
        mean = pyro.param(f"mean_{name}", torch.ones(shape), constraint=constraints.softplus_positive)
        return pyro.sample(name, dist.Gamma(alpha, alpha / mean).to_event(len(shape)))

    def model(x):
        top = pyro.sample("w1", dist.Gamma(0.5, 0.5).expand([2, 3]).to_event(2))
        bottom = pyro.sample("w0", dist.Gamma(0.5, 0.5).expand([3, 4]).to_event(2))
        z1 = pyro.sample("z1", dist.Gamma(1.0, 1.0).expand([6, 2]).to_event(2))
        z0 = pyro.sample("z0", dist.Gamma(1.0, 1.0 / (z1 @ top)).to_event(2))
        pyro.sample("x", dist.Poisson(z0 @ bottom).to_event(2), obs=x)

    def guide(x):
        for name, shape in (("w1", (2, 3)), ("w0", (3, 4)), ("z1", (6, 2)), ("z0", (6, 3))):
            gamma(name, shape)

    return Program(model, guide, Trace_ELBO(), lambda i: (x,))


def state_space():
    """A linear Gaussian chain of three states; the guide reads the data backwards with a recurrent network."""
    x = _randn(4, 3, 2).cumsum(1)
    network, head = nn.GRU(2, 4, batch_first=True), nn.Linear(5, 2)

    def model(x):
        decay = pyro.param("decay", torch.tensor(0.8), constraint=constraints.unit_interval)
        with pyro.plate("chains", len(x)):
            z = torch.zeros(len(x))
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Normal(decay * z, 0.5))
                pyro.sample(f"x_{t}", dist.Normal(z[:, None], 1.0).expand([len(x), 2]).to_event(1), obs=x[:, t])

    def guide(x):
        pyro.module("network", network)
        pyro.module("head", head)
        hidden = network(x.flip(1))[0].flip(1)
        with pyro.plate("chains", len(x)):
            z = torch.zeros(len(x))
            for t in pyro.markov(range(x.shape[1])):
                loc, scale = head(torch.cat([hidden[:, t], z[:, None]], -1)).unbind(-1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, nn.functional.softplus(scale)))

    return Program(model, guide, Trace_ELBO(), lambda i: (x,))


def gaussian_process():
    """Pyro's own, with a prior on its length scale and learned variances."""
    x = torch.linspace(0, 1, 12)
    kernel = gp.kernels.RBF(1, variance=torch.tensor(1.0), lengthscale=torch.tensor(0.5))
    process = gp.models.GPRegression(x, (6 * x).sin() + 0.1 * _randn(12), kernel, noise=torch.tensor(0.1))
    process.kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 1.0))
    process.kernel.autoguide("lengthscale", dist.Normal)
    return Program(process.model, process.guide, Trace_ELBO(), lambda i: ())


def annealed():
    """The weight of the prior rises from step to step, by a tensor."""
    x = _randn(12) + 2

    def latent(name, weight, distribution):
        with poutine.scale(scale=weight):
            return pyro.sample(name, distribution)

    def model(x, weight):
        with pyro.plate("data", len(x)):
            z = latent("z", weight, dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(pyro.param("a", torch.tensor(0.5)) * z, 0.5), obs=x)

    def guide(x, weight):
        slope = pyro.param("slope", torch.tensor(0.1))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.greater_than(0.01))
        with pyro.plate("data", len(x)):
            latent("z", weight, dist.Normal(slope * x, scale))

    return Program(model, guide, Trace_ELBO(num_particles=2), lambda i: (x, torch.tensor((i + 1) / 50)))


def correlated():
    """A correlation matrix of the data as a parameter, and one of the locations as a latent (LKJ)."""
    x = _randn(10, 3)

    def model(x):
        chol = pyro.sample("chol", dist.LKJCholesky(3, torch.tensor(2.0)))
        loc = pyro.sample("loc", dist.MultivariateNormal(torch.zeros(3), scale_tril=chol))
        own = pyro.param("own", torch.eye(3), constraint=constraints.corr_cholesky)
        scale = pyro.param("scale", torch.ones(3, 1), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=scale * own), obs=x)

    return Program(model, AutoNormal(model), Trace_ELBO(), lambda i: (x,))


def complete_cases():
    """Cells that are observed are selected by a mask that the model holds, and latents that are used, likewise."""
    x, observed, used = _randn(10, 3), torch.arange(30).reshape(10, 3) % 4 > 0, torch.arange(10) % 3 > 0

    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        full = torch.zeros(10, 3)
        full[used] = (z[used] + 1).unsqueeze(1) * loc
        pyro.sample("x", dist.Normal(full[observed], 1.0).to_event(1), obs=x.masked_select(observed))

    return Program(model, AutoNormal(model), Trace_ELBO(), lambda i: (x,))


def masked():
    """Some rows are missing, and some cells of the rest."""
    x = _randn(10, 3)
    rows, cells = torch.arange(10) % 3 > 0, torch.arange(30).reshape(10, 3) % 4 > 0

    def model(x, rows, cells):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)), poutine.mask(mask=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc + z[:, None], 1.0).mask(cells).to_event(1), obs=x)
        with pyro.plate("again", len(x)):
            pyro.sample("y", dist.Normal(loc.sum(), 1.0), obs=x[:, 0], obs_mask=rows)

    guide = AutoNormal(poutine.block(model, hide=["y_observed"]), init_loc_fn=init_to_sample)
    return Program(model, guide, Trace_ELBO(), lambda i: (x, rows, cells))


class _Decoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.first = PyroModule[nn.Linear](2, 5, bias=False)
        self.rest = nn.Sequential(nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))  # plain: a pyro.module statement
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.rest(self.first(z)) + self.shift
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)


def modules():
    """PyroModule, PyroParam, plain modules inside of and beside them, with batch normalisation and dropout."""
    x = _randn(12, 3)
    encoder = nn.Sequential(nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4))

    def guide(x):
        pyro.module("encoder", encoder)
        loc, scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    model = _Decoder()
    guide.parts = (model, encoder)
    return Program(model, guide, Trace_ELBO(), lambda i: (x,))


def discrete():
    """Bernoulli latents by the score function, with a learned baseline."""
    x = _randn(8)
    baseline = nn.Linear(1, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(2 * z - 1, 0.5), obs=x)

    def guide(x):
        pyro.module("baseline", baseline)
        weights = pyro.param("weights", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.Bernoulli(logits=weights[0] + weights[1] * x),
                infer={"baseline": {"nn_baseline": lambda v: baseline(v)[:, 0], "nn_baseline_input": x[:, None]}},
            )

    return Program(model, guide, TraceGraph_ELBO(), lambda i: (x,))


def vectorized():
    x, y = regression_data()

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal((x * w).sum(-1), 1.0), obs=y)

    loss = Trace_ELBO(num_particles=4, vectorize_particles=True)
    return Program(model, AutoNormal(model), loss, lambda i: (x, y))


def enumerated():
    """A hidden Markov chain whose states are summed out."""
    x = torch.cat([_randn(3) - 2, _randn(3) + 2])

    @config_enumerate
    def model(x):
        rows = pyro.param("rows", torch.tensor([[0.7, 0.3], [0.4, 0.6]]), constraint=constraints.simplex)
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        z = 0
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(rows[z]))
            pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[t])

    guide = AutoNormal(poutine.block(model, expose=["loc"]))
    return Program(model, guide, TraceEnum_ELBO(max_plate_nesting=0), lambda i: (x,))


PROGRAMS = (
    *(regression, low_rank, point_estimate, mean_field, relaxed_mixture, deep_exponential_family, state_space),
    *(gaussian_process, annealed, masked, modules, discrete, vectorized, enumerated),
    *(correlated, complete_cases),
)
