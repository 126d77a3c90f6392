"""Documents whose lengths differ."""

from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from z_test import assert_mean

from pyro_vae import VAE, Batch, Conditional, Experiment, Fixed, Network, Training, fit, mlp
from pyro_vae.distributions.multinomial import DirichletMultinomial, Multinomial
from pyro_vae.errors import InputError
from pyro_vae.inference import AEVB
from pyro_vae.vae.data_check import check_values

ADAM = partial(torch.optim.Adam, lr=0.02)
families = pytest.mark.parametrize("family", [dist.Multinomial, dist.DirichletMultinomial])


def documents(lengths, vocabulary=6):
    return torch.stack([torch.bincount(torch.randint(vocabulary, (n,)), minlength=vocabulary) for n in lengths]).float()


def make_vae(family, total_count):
    return VAE(
        Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)),
        Conditional(family, (6,), given=mlp(2, 7), total_count=Fixed(total_count)),
    )


@families
def test_conditional_declares_it_in_the_place_of_pyros(family):
    d = Conditional(family, (6,), given=mlp(2, 7), total_count=Fixed(9))(torch.randn(5, 2))
    assert type(d) in (Multinomial, DirichletMultinomial)
    assert type(d.expand((3, 5))) is type(d)
    assert torch.equal(d.sample().sum(-1), torch.full((5,), 9.0))


@families
def test_the_density_is_pyros_at_each_length(family):
    parameters = {"concentration": torch.rand(6)} if family is dist.DirichletMultinomial else {"logits": torch.randn(6)}
    ours = Conditional(family, (6,), total_count=Fixed(50), **{k: Fixed(v) for k, v in parameters.items()})()
    for n in (0, 1, 7, 50):
        x = documents([n])[0]
        torch.testing.assert_close(ours.log_prob(x), family(total_count=n, **parameters).log_prob(x))


@families
@pytest.mark.parametrize(
    "row", [[9.0, 2.0, 0.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0, 0, 0, 0], [-1.0, 2.0, 0.0, 0.0, 0.0, 0.0]], ids=str
)
def test_too_long_fractional_and_negative_documents_are_refused_by_name(family, row):
    x = torch.cat([documents([3, 10, 5]), torch.tensor([row])])
    with pytest.raises(InputError, match=r"row 3 \(from 0\) (sums to|has).*`(Dirichlet)?Multinomial`"):
        fit(make_vae(family, 10), x, AEVB(), Training(optimizer=ADAM, epochs=1))


@families
def test_a_vae_trains_on_documents_of_different_lengths(family):
    torch.manual_seed(0)
    x = documents([1, 30, 4, 12, 0, 7] * 10)
    vae = make_vae(family, 30)
    before = vae.log_weights(x, 50).mean().item()
    fit(vae, x, AEVB(), Training(optimizer=ADAM, epochs=30, batch_size=20))
    assert vae.log_weights(x, 50).mean().item() > before
    assert vae.generate(4).sum(-1).tolist() == [30.0] * 4


def test_draws_have_the_mean():
    d = Multinomial(total_count=5, probs=torch.tensor([0.2, 0.3, 0.5]))
    assert_mean(d.sample((20_000,)), d.mean)


def test_a_network_gives_the_logits():
    likelihood = Conditional(dist.Multinomial, (6,), given=mlp(2, 7), total_count=Fixed(9), logits=Network())
    x = documents([9, 3, 0])
    likelihood(torch.randn(3, 2)).log_prob(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in likelihood.parameters())


def test_a_document_that_is_too_long_is_refused_with_its_length():
    vae = VAE(
        Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)),
        Conditional(dist.Multinomial, (4,), given=mlp(2, 5), total_count=Fixed(3)),
    )
    x = torch.tensor([[3.0, 0, 0, 0], [2, 1, 1, 0]])
    with pytest.raises(InputError, match=r"row 1 \(from 0\) sums to 4, more than total_count=3; declare total_count"):
        check_values(vae, Batch(x), check_support=True)


def test_an_experiment_takes_the_largest_total_from_the_data(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).poisson(2.0, (40, 5)))
    content = {"data": {"name": str(tmp_path / "x.npy")}, "latent": 2, "likelihood": "Multinomial"}
    experiment = Experiment.parse(content)
    data = experiment.load_data()
    largest = int(max(part.sum(1).max() for part in (data.train, data.valid, data.test)))
    likelihood = experiment.completed(data).likelihood.build((5,), torch.nn.Linear(2, 2))
    assert likelihood(torch.zeros(1, 2)).total_count == largest
    assert experiment.build(data).generate(3).sum(1).tolist() == [largest] * 3
    named = Experiment.parse({**content, "likelihood": {"family": "Multinomial", "total_count": 99}})
    assert named.completed(data) == named
