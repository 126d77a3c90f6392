r"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from pyro_vae.networks.activation import Activation, activation_spec
from pyro_vae.networks.sizes import check_sizes


class MLP(nn.Sequential):
    """Fully connected hidden layers, each followed by an activation; see `mlp`.

    Attributes:
        in_features: Size of the input.
        out_features: Size of the last hidden layer.
        hidden: Sizes of all hidden layers.
        activation: Class or function that makes the activations.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], activation: Activation) -> None:
        sizes = (in_features, *hidden)
        check_sizes("mlp", sizes)
        layers: list[nn.Module] = []
        for size, next_size in pairwise(sizes):
            layers += [nn.Linear(size, next_size), activation()]
        super().__init__(*layers)
        self.in_features, self.out_features, self.hidden = in_features, sizes[-1], tuple(hidden)
        self.activation = activation

    def to_spec(self) -> dict[str, Any]:
        """Returns the description in an experiment file: ``{"mlp": [500]}``."""
        return {"mlp": list(self.hidden), **activation_spec(self.activation, nn.Tanh)}


def mlp(in_features: int, *hidden: int, activation: Activation = nn.Tanh) -> MLP:
    """Returns a multilayer perceptron from ``(..., in_features)`` to features ``(..., hidden[-1])``.

    Arguments:
        in_features: Size of the input.
        *hidden: Sizes of the hidden layers. `Conditional` adds a linear layer for the distribution's parameters, so
            without hidden layers the model is linear.
        activation: Class or function that makes an activation; called once for each hidden layer.

    Example:
        >>> mlp(784, 500, 200).out_features
        200
    """
    return MLP(in_features, hidden, activation)
