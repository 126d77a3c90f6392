"""Distributions made again from parameters that are changed in unconstrained space."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions.transforms import AffineTransform, ExpTransform

from pyro_vae.distributions.free_parameters import free_parameters, with_parameters
from pyro_vae.distributions.pushed import Pushed
from pyro_vae.distributions.simplex import LogisticNormal, StickBreaking
from pyro_vae.distributions.von_mises_fisher import VonMisesFisher
from pyro_vae.errors import InputError

LOC = torch.linspace(-1, 2, 15).double().reshape(5, 3)
SCALE = torch.linspace(0.5, 2, 15).double().reshape(5, 3)
TRIL = torch.eye(3).double() + 0.3 * torch.ones(3, 3).double().tril(-1)
MASK = torch.tensor([True, False, True])
UP = math.log(2.0)

# A distribution, its free parameters, and the distribution whose parameters are higher by log 2 in unconstrained space.
CASES: dict[str, tuple[Any, dict[str, tuple[int, ...]], Any]] = {
    "normal": (dist.Normal(LOC, SCALE), {"loc": (), "scale": ()}, dist.Normal(LOC + UP, 2 * SCALE)),
    "event": (
        dist.Normal(LOC, SCALE).to_event(1),
        {"loc": (3,), "scale": (3,)},
        dist.Normal(LOC + UP, 2 * SCALE).to_event(1),
    ),
    "mask": (
        dist.Normal(LOC, SCALE).mask(MASK).to_event(1),
        {"loc": (3,), "scale": (3,)},
        dist.Normal(LOC + UP, 2 * SCALE).mask(MASK).to_event(1),
    ),
    "expanded": (
        dist.Gamma(SCALE[:1], 1.0).expand((5, 3)).to_event(1),
        {"concentration": (3,), "rate": (3,)},
        dist.Gamma(2 * SCALE[:1], 2.0).expand((5, 3)).to_event(1),
    ),
    "expanded from outside": (
        ExpandedDistribution(dist.Normal(LOC[0], SCALE[0]).to_event(1), (5,)),
        {"loc": (3,), "scale": (3,)},
        dist.Normal(LOC[0] + UP, 2 * SCALE[0]).to_event(1).expand((5,)),
    ),
    "pushed": (
        Pushed(dist.Normal(LOC, SCALE).to_event(1), [StickBreaking()]),
        {"loc": (3,), "scale": (3,)},
        Pushed(dist.Normal(LOC + UP, 2 * SCALE).to_event(1), [StickBreaking()]),
    ),
    "transformed": (
        dist.TransformedDistribution(dist.Normal(LOC, SCALE), [AffineTransform(1.0, 2.0), ExpTransform()]).to_event(1),
        {"loc": (3,), "scale": (3,)},
        dist.LogNormal(1 + 2 * (LOC + UP), 4 * SCALE).to_event(1),
    ),
    "log-normal": (dist.LogNormal(LOC, SCALE), {"loc": (), "scale": ()}, dist.LogNormal(LOC + UP, 2 * SCALE)),
    "logistic normal": (
        LogisticNormal(LOC, SCALE),
        {"loc": (3,), "scale": (3,)},
        LogisticNormal(LOC + UP, 2 * SCALE),
    ),
    "beta": (
        dist.Beta(SCALE, 1.0),
        {"concentration1": (), "concentration0": ()},
        dist.Beta(2 * SCALE, 2.0),
    ),
    "dirichlet": (dist.Dirichlet(SCALE), {"concentration": (3,)}, dist.Dirichlet(2 * SCALE)),
    "student": (
        dist.StudentT(3.0, LOC, SCALE),
        {"df": (), "loc": (), "scale": ()},
        dist.StudentT(6.0, LOC + UP, 2 * SCALE),
    ),
    "covariance": (
        dist.MultivariateNormal(LOC, covariance_matrix=TRIL @ TRIL.T),
        {"loc": (3,), "scale_tril": (3, 3)},
        dist.MultivariateNormal(LOC + UP, scale_tril=TRIL + torch.eye(3) + UP * torch.ones(3, 3).double().tril(-1)),
    ),
    "low rank": (
        dist.LowRankMultivariateNormal(LOC, SCALE.unsqueeze(-1), SCALE),
        {"loc": (3,), "cov_factor": (3, 1), "cov_diag": (3,)},
        dist.LowRankMultivariateNormal(LOC + UP, SCALE.unsqueeze(-1) + UP, 2 * SCALE),
    ),
    "relaxed": (
        dist.RelaxedOneHotCategorical(torch.tensor(0.7).double(), logits=LOC),
        {"logits": (3,)},
        dist.RelaxedOneHotCategorical(torch.tensor(0.7).double(), logits=LOC + UP),
    ),
    "probabilities": (dist.Categorical(SCALE), {"logits": (3,)}, dist.Categorical(logits=SCALE.log())),
}
cases = pytest.mark.parametrize(("given", "shapes", "exact"), CASES.values(), ids=list(CASES))


@cases
def test_parameters_are_changed_where_they_are(given: Any, shapes: dict[str, tuple[int, ...]], exact: Any) -> None:
    assert free_parameters(given) == {name: torch.Size(shape) for name, shape in shapes.items()}
    value = given.sample((4,))
    for changed, expected in (
        (with_parameters(given, lambda _, value: value), given),
        (with_parameters(given, lambda _, value: value + UP), exact),
    ):
        assert (changed.batch_shape, changed.event_shape) == (given.batch_shape, given.event_shape)
        torch.testing.assert_close(changed.log_prob(value), expected.log_prob(value), rtol=1e-9, atol=1e-9)


@cases
def test_a_number_for_each_cell_of_more_batch_dimensions(given: Any, shapes: Any, exact: Any) -> None:
    """The first of two batches is unchanged."""
    steps = torch.tensor([0.0, UP]).double()

    def change(name: str, value: Tensor) -> Tensor:
        each = (*given.batch_shape, *shapes[name])
        return value + steps.reshape(2, *(1 for _ in each)).expand(2, *each)

    both = with_parameters(given, change)
    assert (both.batch_shape, both.event_shape) == ((2, *given.batch_shape), given.event_shape)
    value = given.sample()
    for found, expected in zip(both.log_prob(value.expand(2, *value.shape)), (given, exact), strict=True):
        torch.testing.assert_close(found, expected.log_prob(value), rtol=1e-7, atol=1e-7)


def test_the_sphere() -> None:
    mean = torch.nn.functional.normalize(LOC, dim=-1)
    given = VonMisesFisher(mean, SCALE[:, :1].squeeze(-1))
    assert set(free_parameters(given)) == set(VonMisesFisher.arg_constraints)


def test_gradients_reach_the_change() -> None:
    steps = torch.zeros(5, 3).double().requires_grad_()
    changed = with_parameters(dist.Normal(LOC, SCALE).to_event(1), lambda _, value: value + steps)
    (gradient,) = torch.autograd.grad(changed.log_prob(LOC + SCALE).sum(), steps)
    # d/da of log N(x; loc + a, scale e^a) at x = loc + scale and a = 0: 1 / scale + 1 - 1.
    torch.testing.assert_close(gradient, 1 / SCALE, rtol=1e-12, atol=1e-12)


class Own(dist.TorchDistribution):
    """A family whose constructor changes its parameter."""

    arg_constraints = {"loc": torch.distributions.constraints.real}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc + 1
        super().__init__(loc.shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc.expand(*sample_shape, *self.loc.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return -(value - self.loc).square()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dist.Uniform(0.0, SCALE), r"no transform onto the constraint of `Uniform\.low`"),
        (dist.Delta(LOC), r"no transform onto the constraint of `Delta\.v`"),
        (
            dist.MixtureSameFamily(dist.Categorical(SCALE), dist.Normal(LOC, SCALE)),
            "`MixtureSameFamily` declares no parameters with constraints",
        ),
        (Own(LOC), "`Own` made again from its parameters has another density"),
    ],
)
def test_others_are_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        free_parameters(given)
