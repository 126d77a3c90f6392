"""The likelihoods that real data need, each from one line of YAML."""

import pyro.distributions as dist
import pytest
import torch
import yaml

from pyro_vae import VAE, Batch, Conditional, Fixed, Training, fit, mlp
from pyro_vae.distributions.support import cells_of
from pyro_vae.errors import InputError
from pyro_vae.experiment.distribution import DistributionSpec
from pyro_vae.inference import AEVB

UNIT, LINE, COUNTS, LEVELS, BITS = "unit", "line", "counts", "levels", "bits"
DATA = {
    UNIT: lambda n: torch.rand(n, 6).clamp(0.01, 0.99),
    LINE: lambda n: torch.randn(n, 6),
    COUNTS: lambda n: torch.poisson(torch.full((n, 6), 3.0)).clamp(max=12),
    LEVELS: lambda n: torch.randint(256, (n, 6)).float(),
    BITS: lambda n: (torch.rand(n, 6) < 0.4).float(),
}
LIKELIHOODS = {
    "{family: Bernoulli}": BITS,
    "{family: ContinuousBernoulli}": UNIT,
    "{family: Normal, scale: 0.1}": LINE,
    "{family: Normal, scale: {learned: 0.1}}": LINE,
    "{family: Normal, scale: {learned: {init: 0.1, shape: [6]}}}": LINE,
    "{family: Normal}": LINE,
    "{family: Normal, scale: {network: {transform: softplus}}}": LINE,
    "{family: Laplace}": LINE,
    "{family: StudentT}": LINE,
    "{family: StudentT, df: 4, scale: learned}": LINE,
    "{family: Beta}": UNIT,
    "{family: DiscretizedLogisticMixture}": LEVELS,
    "{family: DiscretizedLogisticMixture, components: 3, scales: learned}": LEVELS,
    "{family: Categorical, logits: {network: [256]}}": LEVELS,
    "{family: Binomial, total_count: 12}": COUNTS,
    "{family: Poisson}": COUNTS,
    "{family: NegativeBinomial}": COUNTS,
    "{family: NegativeBinomial, total_count: learned}": COUNTS,
    "{family: ZeroInflatedNegativeBinomial}": COUNTS,
    "{family: ZeroInflatedPoisson}": COUNTS,
    "{family: Multinomial, total_count: 100}": COUNTS,
    "{family: DirichletMultinomial, total_count: 100}": COUNTS,
}


def build(text, given=None):
    return DistributionSpec.model_validate(yaml.safe_load(text)).build((6,), mlp(2, 7) if given is None else given)


def make_vae(likelihood):
    return VAE(Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)), likelihood)


@pytest.mark.parametrize("text", LIKELIHOODS)
def test_a_vae_has_gradients_on_all_parameters_and_generates_inside_the_support(text):
    vae, x = make_vae(build(text)), DATA[LIKELIHOODS[text]](20)
    log_weights = vae.log_weights(x, 3)
    assert log_weights.isfinite().all()
    log_weights.mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    draws = vae.generate(5)
    assert draws.shape == (5, 6)
    assert vae.decode(torch.zeros(5, 2)).support.check(draws).all()
    assert vae.reconstruct(x).shape == x.shape


@pytest.mark.parametrize("text", LIKELIHOODS)
def test_the_line_comes_back_from_to_spec(text):
    first = build(text)
    again = DistributionSpec.model_validate(first.to_spec()).build((6,), mlp(2, 7))
    again.load_state_dict(first.state_dict())
    z = torch.randn(20, 2)
    x = DATA[LIKELIHOODS[text]](20)
    torch.testing.assert_close(again(z).log_prob(x), first(z).log_prob(x))


@pytest.mark.parametrize(
    "text",
    [
        "{family: Poisson, rate: {network: {offset: true}}}",
        "{family: NegativeBinomial, logits: {network: {offset: true}}}",
        "{family: NegativeBinomial, total_count: {learned: 2.0}, logits: {network: {offset: true}}}",
        "{family: ZeroInflatedPoisson, rate: {network: {offset: true}}}",
        "{family: ZeroInflatedNegativeBinomial, logits: {network: {offset: true}}}",
        "{family: GammaPoisson, concentration: {network: {offset: true}}}",
    ],
)
def test_the_log_library_size_multiplies_the_mean(text):
    vae = make_vae(build(text))
    z, x = torch.randn(20, 2), DATA[COUNTS](20)
    offset = torch.randn(20, 1)
    plain, with_it = vae.decode(z), vae.decode(z, Batch(x, offset=offset))
    torch.testing.assert_close(with_it.mean, plain.mean * offset.exp())
    assert not torch.equal(with_it.log_prob(x), plain.log_prob(x))
    assert vae.log_weights(Batch(x, offset=offset)).isfinite().all()


def test_the_mean_of_a_negative_binomial_is_that_of_its_library():
    d = cells_of(build("{family: NegativeBinomial}")(torch.randn(4, 2)))
    torch.testing.assert_close(d.mean, d.total_count * d.logits.exp())


@pytest.mark.parametrize("text", [text for text in LIKELIHOODS if "Multinomial" not in text])
def test_hidden_cells_do_not_count(text):
    vae, x = make_vae(build(text)), DATA[LIKELIHOODS[text]](20)
    mask = torch.rand(20, 6) < 0.7
    z = torch.randn(20, 2)
    spoilt = torch.where(mask, x, torch.nan)
    torch.testing.assert_close(
        vae.log_likelihood(z, Batch(spoilt, mask=mask)),
        (cells_of(vae.decode(z)).log_prob(x) * mask).sum(-1),
    )


@pytest.mark.parametrize("text", [text for text, kind in LIKELIHOODS.items() if kind == COUNTS])
@pytest.mark.parametrize("cell", [-1.0, 0.5])
def test_negative_and_fractional_counts_are_refused_by_their_place(text, cell):
    x = DATA[COUNTS](4)
    x[2, 3] = cell
    with pytest.raises(InputError, match=rf"{cell:g} in row 2|row 2 \(from 0\) has {cell:g} in column 3"):
        fit(make_vae(build(text)), x, AEVB(), Training(steps=1, optimizer=torch.optim.Adam))
