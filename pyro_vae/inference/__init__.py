r"""Inference algorithms, one a file, behind one interface; `ALGORITHMS` maps their short names to classes.

A new algorithm is a subclass of `Inference`, in a file of its own here:

* ``loss_of(vae, batch)`` returns `Loss`: the scalar to differentiate, and the bound on log p(x) if there is one. An
  algorithm with several losses defines ``phases`` instead, each with the parameters that it moves. The batch is ready:
  the methods of `pyro_vae.vae.densities.Densities` take it without a check. The public ``loss(vae, data)`` and
  ``losses(vae, data)`` are inherited; they check the data once.
* ``name`` is its short name, for experiment files.
* ``needs`` are its requirements on a VAE: functions of `pyro_vae.inference.requirements`.
* ``has_bound`` is False if no phase reports a bound; ``trains_posterior`` is False if q(z|x) is not trained to
  approximate p(z|x); ``trains_prior`` is False if the prior is not trained.
* Its own trainable values are parameters; its state from step to step is in buffers.

`pyro_vae.fit` takes any such object. To use its name in experiment files, add its class to
`pyro_vae.inference.registry` and export it here. ``tests/properties/test_interface.py`` then checks it against the
interface, on a VAE from ``tests/support/algorithm_cases.py``. Its own properties, such as an exact value or gradient,
are tested in ``tests/inference/test_<file>.py``.

Example:
    >>> import pyro.distributions as dist, torch
    >>> from pyro_vae.inference.requirements import PATHWISE
    >>> from pyro_vae.networks.mlp import mlp
    >>> from pyro_vae.vae.conditional import Conditional
    >>> from pyro_vae.vae.sources import Fixed
    >>> from pyro_vae.vae.vae import VAE
    >>> class MedianELBO(Inference):
    ...     name, needs, has_bound = "median-elbo", PATHWISE, False
    ...
    ...     def loss_of(self, vae, batch):
    ...         elbos = vae.log_weights_of(batch, 5).median(0).values
    ...         return Loss(-batch.mean(elbos) - vae.log_parameter_prior_per_datum())
    >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 10)))
    >>> MedianELBO().check(vae)
    >>> MedianELBO().loss(vae, torch.ones(4, 6)).value.backward()
"""

from pyro_vae.inference.aevb import AEVB
from pyro_vae.inference.analytic_kl import AnalyticKL
from pyro_vae.inference.autoencoder import Autoencoder
from pyro_vae.inference.beta_vae import BetaVAE
from pyro_vae.inference.ciwae import CIWAE
from pyro_vae.inference.dreg import DReG
from pyro_vae.inference.enumeration import Enumeration
from pyro_vae.inference.free_bits import FreeBits
from pyro_vae.inference.interface import Inference, Loss, Phase
from pyro_vae.inference.iwae import IWAE
from pyro_vae.inference.m2 import M2
from pyro_vae.inference.mcem import MCEM
from pyro_vae.inference.miwae import MIWAE
from pyro_vae.inference.mmd import MMD
from pyro_vae.inference.piwae import PIWAE
from pyro_vae.inference.registry import ALGORITHMS, algorithm
from pyro_vae.inference.renyi import Renyi
from pyro_vae.inference.rws import RWS
from pyro_vae.inference.score_function import ScoreFunction
from pyro_vae.inference.stl import STL
from pyro_vae.inference.vb import VB
from pyro_vae.inference.wake_sleep import WakeSleep

__all__ = [
    "AEVB",
    "ALGORITHMS",
    "CIWAE",
    "IWAE",
    "M2",
    "MCEM",
    "MIWAE",
    "MMD",
    "PIWAE",
    "RWS",
    "STL",
    "VB",
    "AnalyticKL",
    "Autoencoder",
    "BetaVAE",
    "DReG",
    "Enumeration",
    "FreeBits",
    "Inference",
    "Loss",
    "Phase",
    "Renyi",
    "ScoreFunction",
    "WakeSleep",
    "algorithm",
]
