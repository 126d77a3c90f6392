r"""A network shared by several heads: it runs once, and each head sees its features."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.networks.sizes import out_features
from pyro_vae.runtime.precision import network_output


class PassThrough(nn.Module):
    """Identity network of a head: the head receives the trunk's features directly.

    Attributes:
        in_features: Number of features.
        out_features: Equal to ``in_features``.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.in_features = self.out_features = features

    def forward(self, features: Tensor) -> Tensor:
        return features


class Trunk(nn.Module):
    """Base of a distribution with several heads on one network, or with none.

    Arguments:
        given: Network from a context ``(..., C)`` to features, or None.
    """

    def __init__(self, given: nn.Module | None) -> None:
        super().__init__()
        self.given = given

    def head_network(self) -> PassThrough | None:
        """Returns the network of a head, the identity on the trunk's features; None without a trunk."""
        return None if self.given is None else PassThrough(out_features(self.given))

    def like_trunk(self, *heads: nn.Module) -> None:
        """Moves heads to the trunk's device and floating-point type."""
        if self.given is not None and (like := next(self.given.parameters(), None)) is not None:
            for head in heads:
                head.to(like.device, like.dtype)

    def features(self, context: Tensor | None) -> Tensor | None:
        """Returns the trunk's features of a context of shape ``(..., C)``; None without a trunk."""
        if self.given is None:
            return None
        if context is None:
            raise InputError(f"{type(self).__name__}: has a network, which needs a context; call it with one.")
        return network_output(self.given, context)
