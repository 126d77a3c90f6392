r"""What an encoder's input goes through before the first layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError, near_match
from pyro_vae.networks.sizes import check_count
from pyro_vae.networks.specification import spec_of


def log1p(x: Tensor) -> Tensor:
    r"""Returns :math:`\mathrm{sign}(x) \log(1 + |x|)`: log(1 + x) of counts, and finite for every x."""
    return x.sign() * x.abs().log1p()


def normalise(x: Tensor) -> Tensor:
    r"""Returns :math:`x / \sum_j |x_j|`: the relative frequencies of counts, and 0 for an empty row."""
    total = x.abs().sum(-1, keepdim=True)
    return x / torch.where(total > 0, total, 1)


PREPROCESSING: dict[str, Callable[[Tensor], Tensor]] = {"log1p": log1p, "normalise": normalise}


class Preprocess(nn.Module):
    r"""A network that receives a fixed function of the data; the context behind them reaches it as it is.

    ``log1p`` brings counts of several orders of magnitude to one scale; ``normalise`` makes bags of words of
    documents of all lengths comparable. Only what the encoder sees changes, never the data of the likelihood.

    Arguments:
        kind: ``"log1p"`` or ``"normalise"``.
        network: From ``(..., D + context_features)`` to features.
        context_features: How many of the last features of the input are context.

    Raises:
        InputError: For an unknown kind.

    Reference:
        Lopez et al., "Deep generative modeling for single-cell transcriptomics", 2018, for log(1 + x).

    Example:
        >>> from pyro_vae.networks import mlp
        >>> Preprocess("log1p", mlp(2000, 128)).to_spec()
        {'mlp': [128], 'input': 'log1p'}
        >>> Preprocess("normalise", nn.Identity())(torch.tensor([[1.0, 3.0]]))
        tensor([[0.2500, 0.7500]])
    """

    def __init__(self, kind: str, network: nn.Module, context_features: int = 0) -> None:
        super().__init__()
        if kind not in PREPROCESSING:
            raise InputError(f"Preprocess: unknown kind `{kind}`; {near_match(str(kind), PREPROCESSING)}")
        check_count("Preprocess", "context_features", context_features, 0)
        self.kind, self.network, self.context_features = kind, network, context_features
        for size in ("in_features", "out_features"):
            if hasattr(network, size):
                setattr(self, size, getattr(network, size))

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the network makes of ``(..., D + context_features)``."""
        cells = x.shape[-1] - self.context_features
        data = PREPROCESSING[self.kind](x[..., :cells])
        features: Tensor = self.network(torch.cat([data, x[..., cells:]], dim=-1) if self.context_features else data)
        return features

    def extra_repr(self) -> str:
        return f"{self.kind}, context_features={self.context_features}"

    def to_spec(self) -> dict[str, Any]:
        """Returns what an experiment file would say: ``{"mlp": [128], "input": "log1p"}``."""
        return {**spec_of(self.network), "input": self.kind}
