r"""The gated multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pyro_vae.networks.activation import Activation, activation_spec
from pyro_vae.networks.sizes import check_sizes


class GatedLinear(nn.Module):
    r"""One gated layer, :math:`h = f(A x + a) \odot \sigma(B x + b)`; A and B are stacked in one matrix of 2H rows.

    Arguments:
        in_features: Size of the input.
        out_features: Size H of the output.
        activation: Class or function that makes f; None for the identity.
    """

    def __init__(self, in_features: int, out_features: int, activation: Activation | None) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 2 * out_features)
        nn.init.normal_(self.linear.weight, std=math.sqrt(2 / in_features))
        self.activation = None if activation is None else activation()

    def forward(self, x: Tensor) -> Tensor:
        """Returns h, shape ``(..., H)``, for x of shape ``(..., in_features)``."""
        both = self.linear(x)
        if self.activation is None:
            return functional.glu(both)
        value, gate = both.chunk(2, dim=-1)
        return self.activation(value) * gate.sigmoid()


class GatedMLP(nn.Sequential):
    """Gated hidden layers; see `gated_mlp`.

    Attributes:
        in_features: Size of the input.
        out_features: Size of the last hidden layer.
        hidden: Sizes of all hidden layers.
        activation: Class or function that makes f, or None.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], activation: Activation | None) -> None:
        sizes = (in_features, *hidden)
        check_sizes("gated_mlp", sizes)
        super().__init__(*(GatedLinear(size, next_size, activation) for size, next_size in pairwise(sizes)))
        self.in_features, self.out_features, self.hidden = in_features, sizes[-1], tuple(hidden)
        self.activation = activation

    def to_spec(self) -> dict[str, Any]:
        """Returns the description in an experiment file: ``{"gated": [300, 300]}``."""
        return {"gated": list(self.hidden), **activation_spec(self.activation, None)}


def gated_mlp(in_features: int, *hidden: int, activation: Activation | None = None) -> GatedMLP:
    r"""Returns a gated multilayer perceptron from ``(..., in_features)`` to features ``(..., hidden[-1])``.

    .. math:: h_l = f(A_l h_{l-1} + a_l) \odot \sigma(B_l h_{l-1} + b_l)

    A gate multiplies a linear path, so gradients do not vanish along it. The weights have He's initialisation,
    N(0, 2 / inputs), as in the code of the VampPrior; the biases are initialised as in `torch.nn.Linear`.

    Arguments:
        in_features: Size of the input.
        *hidden: Sizes of the hidden layers. `Conditional` adds a linear layer for the distribution's parameters.
        activation: Class or function that makes f, called once for each hidden layer; None for the identity, as in
            both papers.

    Reference:
        Dauphin, Fan, Auli and Grangier, "Language modeling with gated convolutional networks", 2017, eq. 1.
        Tomczak and Welling, "VAE with a VampPrior", 2018, whose networks on MNIST are ``gated_mlp(784, 300, 300)``.
        He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015, eq. 10.

    Example:
        >>> gated_mlp(784, 300, 300).to_spec()
        {'gated': [300, 300]}
    """
    return GatedMLP(in_features, hidden, activation)
