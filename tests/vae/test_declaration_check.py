"""What a VAE says at construction of parts that do not fit."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, Conditional, Fixed, Flow, Hierarchy, Learned, Mixture, mlp
from pyro_vae.errors import InputError
from pyro_vae.vae.hierarchy import Reads

ONE_NETWORK = {
    "mlp": lambda width: mlp(width, 5),
    "without hidden layers": mlp,
    "sequential": lambda width: nn.Sequential(nn.Linear(width, 5), nn.Tanh()),
    "linear": lambda width: nn.Linear(width, 5),
}


def standard(latent: int = 2) -> Conditional:
    return Conditional(dist.Normal, (latent,), loc=Fixed(0.0), scale=Fixed(1.0))


def declared(latents: int = 2, cells: int = 6, context: int = 0, **parts: nn.Module) -> VAE:
    """A VAE whose networks are made for so many latents and cells, where there are 2 and 6."""
    likelihood = Conditional(dist.Bernoulli, (6,), given=mlp(latents + context, 5))
    posterior = Conditional(dist.Normal, (2,), given=mlp(cells + context, 5))
    return VAE(
        **{"prior": standard(), "likelihood": likelihood, "posterior": posterior, **parts}, context_features=context
    )


# ------------------------------------------------------------------ widths


@pytest.mark.parametrize("make", ONE_NETWORK.values(), ids=ONE_NETWORK)
def test_a_network_for_another_number_of_features_is_said_in_latents_cells_and_covariates(
    make: Callable[[int], nn.Module],
) -> None:
    likelihood, posterior = (Conditional(dist.Bernoulli, (6,), given=make(7)) for _ in range(2))
    with pytest.raises(InputError) as error:
        declared(likelihood=likelihood)
    assert str(error.value) == (
        "VAE: the likelihood fails on (2, 2): its network takes 7 features and gets 2 (2 latents and 0 covariates); "
        "make it for 2, as by mlp(2, 200)."
    )
    posterior = Conditional(dist.Normal, (2,), given=make(7))
    with pytest.raises(
        InputError, match=r"the posterior fails on \(2, 6\): its network takes 7 .* gets 6 \(6 cells and 0"
    ):
        declared(posterior=posterior)
    with pytest.raises(InputError, match=r"takes 7 features and gets 9 \(6 cells and 3 covariates\); make it for 9"):
        declared(posterior=posterior, context=3)
    with pytest.raises(InputError, match=r"takes 7 features and gets 3 \(2 latents and 1 covariate\)"):
        declared(likelihood=likelihood, context=1)
    prior = Conditional(dist.Normal, (2,), given=make(7))
    with pytest.raises(
        InputError, match=r"the prior fails on \(2, 3\): .* takes 7 features and gets 3 \(3 covariates\)"
    ):
        declared(prior=prior, context=3)


@pytest.mark.parametrize(
    "parts",
    [
        lambda: {"posterior": mlp(7, 5)},  # features alone
        lambda: {"posterior": Conditional(dist.Normal, (2,), given=mlp(7, 5)), "prior": Conditional(dist.Gamma, (2,))},
        lambda: {"posterior": Flow((2,), given=mlp(7, 5))},
        lambda: {"posterior": Mixture(dist.Normal, (2,), 2, given=mlp(7, 5))},
    ],
    ids=["network", "pushed", "flow", "mixture"],
)
def test_of_every_kind_of_posterior(parts: Callable[[], dict[str, nn.Module]]) -> None:
    with pytest.raises(InputError, match=r"its network takes 7 features and gets 6 \(6 cells and 0 covariates\)"):
        declared(**parts())


def test_a_likelihood_that_reads_some_layers_is_given_their_latents() -> None:
    prior = Hierarchy(z2=standard(3), z1=Conditional(dist.Normal, (2,), given=mlp(3, 5)))
    likelihood = Reads(Conditional(dist.Bernoulli, (6,), given=mlp(5, 5)), "z1")
    with pytest.raises(InputError, match=r"its network takes 5 features and gets 2 \(2 latents and 0 covariates\)"):
        VAE(prior, likelihood)


class Broken(nn.Module):
    """Takes what it is given, and fails."""

    in_features = out_features = 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of luck")


def test_what_is_not_of_widths_is_said_as_it_is() -> None:
    with pytest.raises(InputError, match=r"the posterior fails on \(2, 6\): out of luck$"):
        declared(posterior=Conditional(dist.Normal, (2,), given=Broken()))


# ------------------------------------------------------------------ posteriors that fit


@pytest.mark.parametrize("family", [dist.Bernoulli, dist.Geometric, dist.OneHotCategorical])
def test_the_posterior_that_a_discrete_mixture_asks_for_is_of_its_components_family(family: type) -> None:
    prior, likelihood = Mixture(family, (3,), 2), Conditional(dist.Bernoulli, (6,), given=mlp(3, 5))
    remedy = rf"pass posterior=Conditional\(dist.{family.__name__}, \(3,\), given=\.\.\.\)\.$"
    with pytest.raises(InputError, match=remedy):
        VAE(prior, likelihood)
    assert VAE(prior, likelihood, Conditional(family, (3,), given=mlp(6, 5))).encode(torch.zeros(4, 6)).batch_shape == (
        4,
    )


def test_where_the_density_does_not_integrate_to_one_too() -> None:
    loc = Learned([[0.0, 1.0], [1.0, 2.0]])
    prior, likelihood = Mixture(dist.VonMises, (2,), 2, loc=loc), Conditional(dist.Bernoulli, (6,), given=mlp(2, 5))
    for posterior in (None, Conditional(dist.Normal, (2,), given=mlp(6, 5))):
        with pytest.raises(InputError, match=r"pass posterior=Conditional\(dist.VonMises, \(2,\), given=\.\.\.\)\.$"):
            VAE(prior, likelihood, posterior)


def test_only_where_a_posterior_follows_from_the_prior_it_may_be_left_out() -> None:
    for prior, ending in (
        (dist.Bernoulli, "pass posterior=Conditional(dist.Bernoulli, (2,), given=...)."),
        (dist.Gamma, "or leave it out and it follows from the prior."),
    ):
        with pytest.raises(InputError, match="draws outside the") as error:
            declared(prior=Conditional(prior, (2,)), posterior=Conditional(dist.Beta, (2,), given=mlp(6, 5)))
        assert str(error.value).endswith(ending)
