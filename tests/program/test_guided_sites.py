"""Models for which no guide follows are refused; each message names the site and the remedy."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import auto_guide
from pyro_vae.errors import InputError


def discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def periodic(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        angle = pyro.sample("angle", dist.VonMises(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(angle.cos(), 1.0), obs=x)


def moving_support(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(torch.tensor(1.0), 1.0))
        part = pyro.sample("part", dist.Uniform(0.0, z))
        pyro.sample("x", dist.Normal(part, 1.0), obs=x)


def learned_support(x: Tensor) -> None:
    top = pyro.param("top", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        part = pyro.sample("part", dist.Uniform(0.0, top))
        pyro.sample("x", dist.Normal(part, 1.0), obs=x)


def moving_mask(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        with poutine.mask(mask=z > 0):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def residual(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x - z)


def no_latent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def no_observed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))


def other_name(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def fixed_size(x: Tensor) -> None:
    with pyro.plate("data", 1):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:1])


def observed_outside(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x.sum())


def undeclared(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(4, 1), 1.0))
        pyro.sample("x", dist.Normal(z.sum(-2), 1.0), obs=x)


def masked_cells(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def normal(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0, validate_args=False), obs=x)


ROWS = torch.tensor([-1.0, 0.5, 3.0])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (discrete, r'the site `k` is discrete.*mark it infer=\{"enumerate": "parallel"\}'),
        (periodic, r"the density of the site `angle` does not integrate to 1.*write the guide by hand"),
        (moving_support, "the support of the site `part` depends on a latent|the support of the site `part` differs"),
        (learned_support, "the support of the site `part` depends on a latent or on a parameter.*fixed support"),
        (moving_mask, "the mask of the site `x` differs between two runs.*depends on a latent"),
        (residual, "the observed value of the site `x` differs between two runs"),
        (no_latent, "has no latent site; draw at least one"),
        (no_observed, "observes nothing; pass obs="),
        (other_name, r"no plate `data` with a site in it \(its plates: `rows`\); pass plate="),
        (fixed_size, r"the plate `data` of the model has 1 rows, and the example 3; .*len\(x\)"),
        (observed_outside, "the observed site `x` lies outside the plate `data`"),
        (undeclared, r"`z` has a batch dimension of size 4 at -2.*\.to_event\(2\)"),
        (masked_cells, "hides single cells of the latent site `z`; hide whole events by poutine.mask"),
        (lambda x, y: None, "the model fails on the example: TypeError.*one argument, the batch"),
        (nn.Linear, "`model` is a function or a module of one argument"),
    ],
)
def test_what_cannot_have_such_a_guide_is_refused(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"(?s)^auto_guide: .*({message})"):
        auto_guide(model, ROWS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "normall"}, "unknown family `normall`; did you mean `normal`"),
        ({"dependencies": "meanfield"}, "unknown dependencies `meanfield`; did you mean `mean-field`"),
        ({"encoder": torch.tanh}, r"`encoder` is a module from \(..., D\) to features"),
        ({"encoder": nn.Linear(7, 2)}, r"`encoder` fails on its input of shape \(..., 1\), which are 1 of x"),
        ({"plate": "rows"}, "no plate `rows`"),
        ({"example": ROWS[:1]}, "`example` is a batch of at least two data, got one"),
        ({"example": ROWS / 0}, "`x` has values that are not finite; hide these cells by a mask"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"(?s)^auto_guide: .*{message}"):
        auto_guide(normal, **{"example": ROWS, **options})
