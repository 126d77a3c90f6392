"""Whether two programs are certain to be the same."""

import copy
import functools

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, Conditional, Fixed, Learned, mlp
from pyro_vae.engine.step.same_program import same_program
from pyro_vae.inference import IWAE, BetaVAE


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return self.scale * x


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def vae(width=5, **options):
    prior = Conditional(dist.Normal, (2,), loc=Learned(0.1, shape=(2,)), scale=Fixed(1.0))
    return VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, width)), **options)


def adding(n):
    return lambda x: x + n


def test_what_is_built_in_the_same_way_is_alike_whatever_its_parameters():
    torch.manual_seed(0)
    first, second = vae(), vae()
    assert same_program(first, second)
    assert same_program(first, copy.deepcopy(first))
    assert same_program(BetaVAE(2.0), BetaVAE(2.0))
    assert same_program(adding(1), adding(1))
    assert same_program([first.likelihood, {"a": (1, None)}], [second.likelihood, {"a": (1, None)}])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (vae(), vae(width=6)),
        (vae(), vae(size=10)),
        (BetaVAE(2.0), BetaVAE(3.0)),
        (IWAE(2), BetaVAE(2.0)),
        (adding(1), adding(2)),
        (Scaled(torch.ones(2)), Scaled(torch.zeros(2))),
        (Scaled(functools.partial(adding, 1)), Scaled(functools.partial(adding, 2))),
        (Scaled(Slotted(1)), Scaled(Slotted(2))),
        (Scaled(1), Scaled(1.0)),
        (nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)),
        (nn.Linear(2, 2), nn.Linear(2, 2).double()),
        ({"a": 1}, {"b": 1}),
        ([1, 2], [1]),
    ],
)
def test_what_may_differ_is_not_alike(a, b):
    assert not same_program(a, b)
    assert same_program(a, a)


def test_what_refers_to_itself_is_compared_once():
    a, b = Scaled(1), Scaled(1)
    a.other, b.other = [a], [b]
    assert same_program(a, b)
    b.other.append(2)
    assert not same_program(a, b)
