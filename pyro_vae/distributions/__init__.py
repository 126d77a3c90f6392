r"""Families that Pyro lacks, and properties of families: parameters, supports, KL divergences, moments.

A new family is a subclass of `pyro.distributions.TorchDistribution`, in a file of its own here:

* ``arg_constraints`` has the constraint of each parameter that a network may output or that may be learned; arguments
  that are not in it are constants.
* ``support`` is the constraint of one draw. Its ``event_dim`` is the number of dimensions of an event.
* Its methods are ``log_prob``, ``expand``, and ``rsample`` with ``has_rsample = True``; if draws have no gradient,
  ``sample`` replaces ``rsample``.
* Other attributes, such as the sizes of its parameters or a suitable posterior, are optional: see
  `pyro_vae.distributions.protocol`.

Any such class can be given to `Conditional`. Experiment files can name it once it is in ``OWN`` of
`pyro_vae.distributions.registry`; then ``tests/properties/test_densities.py`` tests its total mass, and its draws
against its density. ``tests/distributions/test_<file>.py`` tests its special properties.

Example:
    >>> import torch
    >>> from pyro.distributions import TorchDistribution, constraints
    >>> from pyro_vae.networks.mlp import mlp
    >>> from pyro_vae.vae.conditional import Conditional
    >>> class Rayleigh(TorchDistribution):
    ...     arg_constraints = {"scale": constraints.positive}
    ...     support = constraints.positive
    ...     has_rsample = True
    ...
    ...     def __init__(self, scale, validate_args=None):
    ...         self.scale = scale
    ...         super().__init__(scale.shape, validate_args=validate_args)
    ...
    ...     def expand(self, batch_shape, _instance=None):
    ...         return Rayleigh(self.scale.expand(batch_shape))
    ...
    ...     def rsample(self, sample_shape=()):
    ...         u = torch.rand(torch.Size(sample_shape) + self.batch_shape).to(self.scale)
    ...         return self.scale * (-2 * torch.log1p(-u)).sqrt()
    ...
    ...     def log_prob(self, value):
    ...         return value.log() - 2 * self.scale.log() - (value / self.scale).square() / 2
    >>> likelihood = Conditional(Rayleigh, (3,), given=mlp(2, 10))
    >>> likelihood(torch.zeros(5, 2)).log_prob(torch.ones(5, 3)).shape
    torch.Size([5])
"""
