r"""A prior over the generative parameters: the maximum a posteriori criterion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterPrior:
    r"""Independent priors p(theta) over the generative parameters, in the space in which they are optimised.

    Training then maximises the bound on :math:`\sum_i \log p(x_i) + \log p(\theta)`, of which a minibatch of M
    of N data sees :math:`\frac{N}{M}\sum_{i \in M} \mathrm{ELBO}_i + \log p(\theta)`. With N(0, I) it is the weight
    decay of the AEVB paper.

    Attributes:
        distribution: A univariate distribution, applied to every element.
        biases: Whether parameters of fewer than two dimensions (biases, learned scales) are included; weight
            matrices always are.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, section 5.
    """

    distribution: torch.distributions.Distribution
    biases: bool = False

    def log_prob(self, parameters: Mapping[str, nn.Parameter]) -> Tensor:
        """Returns log p(theta), in nats, for all parameters together."""
        terms = [
            self.distribution.log_prob(parameter).sum()
            for parameter in parameters.values()
            if parameter.requires_grad and (self.biases or parameter.dim() > 1)
        ]
        return torch.stack(terms).sum() if terms else torch.zeros(())
