r"""Initial parameters of a family at the location and scale of data: what an estimate without latents would be.

A rule takes the `Statistics` of the data and returns the parameters, by name, in the parameter's own space. Where a
quantity has several parametrisations (``logits`` and ``probs``), it returns all of them. Rules are maximum likelihood
where it has a closed form (nearly so for Gamma), the method of moments elsewhere, and medians for families with heavy
tails. One half is added to counts of successes, so that no probability is 0. A cell that does not vary has no scale of
its own; its size takes the place, or 1 where that is 0.
"""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution

from pyro_vae.distributions import start_continuous as continuous
from pyro_vae.distributions import start_discrete as discrete
from pyro_vae.distributions.discretized_logistic import DiscretizedLogisticMixture
from pyro_vae.distributions.protocol import start_of
from pyro_vae.distributions.start_rule import Known as Known
from pyro_vae.distributions.start_rule import Rule

RULES: dict[type, Rule] = {
    dist.Normal: continuous.normal,
    dist.Laplace: continuous.laplace,
    dist.AsymmetricLaplace: continuous.laplace,
    dist.SoftAsymmetricLaplace: continuous.laplace,
    dist.SoftLaplace: continuous.soft_laplace,
    dist.Logistic: continuous.logistic,
    dist.SkewLogistic: continuous.logistic,
    dist.Gumbel: continuous.gumbel,
    dist.Cauchy: continuous.cauchy,
    dist.StudentT: continuous.student,
    dist.MultivariateNormal: continuous.vector_normal,
    dist.LowRankMultivariateNormal: continuous.vector_normal,
    dist.MultivariateStudentT: continuous.vector_student,
    dist.VonMises: continuous.von_mises,
    dist.LogNormal: continuous.log_normal,
    dist.Gamma: continuous.gamma,
    dist.InverseGamma: continuous.inverse_gamma,
    dist.Exponential: continuous.exponential,
    dist.Chi2: continuous.chi2,
    dist.HalfNormal: continuous.half_normal,
    dist.HalfCauchy: continuous.half_cauchy,
    dist.Weibull: continuous.weibull,
    dist.Beta: continuous.beta,
    dist.ContinuousBernoulli: continuous.continuous_bernoulli,
    dist.Dirichlet: continuous.dirichlet,
    dist.Bernoulli: discrete.bernoulli,
    dist.RelaxedBernoulli: discrete.bernoulli,
    dist.RelaxedBernoulliStraightThrough: discrete.bernoulli,
    dist.Categorical: discrete.categorical,
    dist.OneHotCategorical: discrete.one_hot,
    dist.RelaxedOneHotCategorical: discrete.one_hot,
    dist.Multinomial: discrete.one_hot,
    dist.DirichletMultinomial: discrete.dirichlet_multinomial,
    dist.Poisson: discrete.poisson,
    dist.NegativeBinomial: discrete.negative_binomial,
    dist.GammaPoisson: discrete.gamma_poisson,
    dist.Geometric: discrete.geometric,
    dist.Binomial: discrete.binomial,
    dist.BetaBinomial: discrete.beta_binomial,
    dist.ZeroInflatedPoisson: discrete.zero_inflated_poisson,
    dist.ZeroInflatedNegativeBinomial: discrete.zero_inflated_negative_binomial,
    DiscretizedLogisticMixture: discrete.discretized_logistic,
}
"""The rule of each family; it holds for subclasses too."""


def rule_of(family: type[TorchDistribution]) -> Rule | None:
    """Returns the rule of a family: its own attribute ``start``, or that of the nearest class that has one; else None.

    Example:
        >>> import torch
        >>> from pyro_vae.batch import Batch
        >>> from pyro_vae.distributions.statistics import Statistics
        >>> data = Statistics.of(Batch(torch.tensor([[2.0], [6.0]])))
        >>> rule_of(dist.Poisson)(data, Known({}, {})).parameters["rate"].item()
        2.8333333333333335
    """
    return start_of(family) or next((RULES[kind] for kind in family.__mro__ if kind in RULES), None)
