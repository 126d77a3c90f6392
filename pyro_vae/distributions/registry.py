r"""The families by name: those of `pyro.distributions`, and our own."""

from __future__ import annotations

import inspect

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions import Distribution

from pyro_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.distributions.discretized_logistic import DiscretizedLogisticMixture
from pyro_vae.distributions.multinomial import DirichletMultinomial, Multinomial
from pyro_vae.distributions.simplex import LogisticNormal
from pyro_vae.distributions.von_mises_fisher import SphericalUniform, VonMisesFisher
from pyro_vae.errors import InputError

# Our own families: some replace a family of Pyro's with the same name, the others are new.
OWN: tuple[type[TorchDistribution], ...] = (
    ContinuousBernoulli,
    DirichletMultinomial,
    DiscretizedLogisticMixture,
    LogisticNormal,
    Multinomial,
    SphericalUniform,
    VonMisesFisher,
)


def _exported() -> dict[str, type[TorchDistribution]]:
    exported = {
        name: member
        for name, member in vars(dist).items()
        if inspect.isclass(member) and issubclass(member, Distribution) and not name.startswith("_")
    }
    return dict(sorted({**exported, **{own.__name__: own for own in OWN}}.items()))


FAMILIES: dict[str, type[TorchDistribution]] = _exported()
"""Every family by name: what `pyro.distributions` exports, and our own."""


# Names of families in other libraries and in textbooks.
OTHER_NAMES = {
    "Gaussian": "Normal",
    "MultivariateGaussian": "MultivariateNormal",
    "Multinoulli": "Categorical",
    "NegBinomial": "NegativeBinomial",
    "Student": "StudentT",
    "T": "StudentT",
}


def usual_name(name: str) -> str:
    """Returns the usual name of a family if ``name`` is one of its other names; else ``name`` itself.

    Example:
        >>> usual_name("gaussian")
        'Normal'
    """
    return {other.lower(): family for other, family in OTHER_NAMES.items()}.get(name.lower(), name)


def family_in_place_of(family: type[Distribution]) -> type[TorchDistribution]:
    """Returns Pyro's family for one of torch's, and our own family for one that it replaces.

    Raises:
        InputError: For a family of torch's that Pyro does not have.
    """
    if not issubclass(family, TorchDistributionMixin):
        of_pyro = getattr(dist, family.__name__, None)
        if not (inspect.isclass(of_pyro) and issubclass(of_pyro, family)):
            raise InputError(
                f"Conditional: `{family.__name__}` is no class of pyro.distributions; make it one by a subclass, "
                f"class {family.__name__}({family.__name__}, pyro.distributions.TorchDistributionMixin)."
            )
        family = of_pyro
    for own in OWN:
        if own.__name__ == family.__name__ and family in own.__bases__:
            return own
    return family
