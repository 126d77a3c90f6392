r"""A prior over the generative parameters: the maximum a posteriori criterion."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterPrior:
    r"""Independent priors p(theta) over the generative parameters, in the space in which they are optimised.

    Training then maximises the bound on :math:`\sum_i \log p(x_i) + \log p(\theta)`. On a minibatch of M of N
    data it is :math:`\frac{N}{M}\sum_{i \in M} \mathrm{ELBO}_i + \log p(\theta)`. With N(0, I) the prior is the
    weight decay of the AEVB paper.

    Attributes:
        distribution: A univariate distribution, applied to every element.
        biases: Whether to include biases and the parameters that are in no network (learned means and scales, the
            pseudo-inputs of a VampPrior). The weight matrices of networks are always included.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, section 5.
    """

    distribution: torch.distributions.Distribution
    biases: bool = False

    def log_prob(self, parameters: Mapping[str, nn.Parameter], free: Collection[str] = ()) -> Tensor:
        """Returns log p(theta), in nats, for all parameters together.

        Arguments:
            parameters: Parameters by name.
            free: Names of the parameters that are in no network; they are never counted as weight matrices.
        """
        terms = [
            self.distribution.log_prob(parameter).sum()
            for name, parameter in parameters.items()
            if parameter.requires_grad and (self.biases or (parameter.dim() > 1 and name not in free))
        ]
        return torch.stack(terms).sum() if terms else torch.zeros(())
