r"""The pre-activation residual block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vae.networks.activation import Activation


class ResidualBlock(nn.Module):
    r"""A pre-activation residual block, without normalisation.

    .. math:: y = x + W_2 f(W_1 f(x))

    With batch normalisation, the weights of a datum would depend on the other data. Layer or group normalisation
    needs another pass over the maps, and initialisation does the same job: :math:`W_1` has He's initialisation,
    :math:`W_2` the same divided by :math:`\sqrt{N}` in a network of N blocks, and the biases are 0. With rectifiers,

    .. math:: \mathrm{E}\,|y|^2 = |x|^2 + \tfrac{2}{N} |f(x)|^2

    for fully connected layers. So N blocks multiply the size of a signal by about e, for any N.

    Arguments:
        first: Layer of :math:`W_1`; it is initialised again.
        second: Layer of :math:`W_2`; its output has the shape of x. It is initialised again.
        activation: Class or function that makes f; called twice.
        num_blocks: N, the number of blocks of the whole network.

    Reference:
        He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", 2016, eq. 3 and figure 4(e).
        Child, "Very deep VAEs generalize autoregressive models and can outperform them on images", 2021, for the
        factor on the last layer of each block.
    """

    def __init__(
        self, first: nn.Linear | nn.Conv2d, second: nn.Linear | nn.Conv2d, activation: Activation, num_blocks: int
    ) -> None:
        super().__init__()
        self.before, self.first, self.between, self.second = activation(), first, activation(), second
        for layer in (first, second):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            second.weight.div_(num_blocks**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns y, of the shape of x."""
        y: Tensor = x + self.second(self.between(self.first(self.before(x))))
        return y


def linear_block(width: int, activation: Activation, num_blocks: int) -> ResidualBlock:
    """Returns a block of two fully connected layers."""
    return ResidualBlock(nn.Linear(width, width), nn.Linear(width, width), activation, num_blocks)


def convolution_block(channels: int, activation: Activation, num_blocks: int) -> ResidualBlock:
    """Returns a block of two 3 x 3 convolutions, which keep the size of the maps."""
    first, second = (nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(2))
    return ResidualBlock(first, second, activation, num_blocks)
